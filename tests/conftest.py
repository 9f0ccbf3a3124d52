"""Fixtures for every test."""

from __future__ import annotations

import os
import sys

import pytest
import torch

pytest.register_assert_rewrite("tests.harness")

if os.environ.get("PYGEN_TEST_FALLBACK") == "1":  # as if nothing had been compiled; see contract/test_fallback.py
    sys.modules["pygen._C"] = None  # type: ignore[assignment]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "big: needs many gigabytes of memory; runs with PYGEN_TEST_BIG=1")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
