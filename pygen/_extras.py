"""What pip installs on request."""

from __future__ import annotations

import importlib.util


def need(what: str, extra: str, *modules: str) -> None:
    """Raises ImportError, which names the pip command, where a module that `extra` brings is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        verb = "need" if what.endswith("s") else "needs"
        raise ImportError(f"{what} {verb} {' and '.join(missing)}: pip install 'pygen[{extra}]'")
