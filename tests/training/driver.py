"""`pygen` that kills itself in the middle of a write: driver.py MOMENT ARGUMENT...

MOMENT: fsync:N, replace:N or replaced:N: before the N-th call of os.fsync or os.replace, or after that of os.replace;
or "-". Prints "ready" once training begins.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from pygen.training import run


def die_at(moment: str) -> None:
    what, _, number = moment.partition(":")
    name = what.removesuffix("d")
    works, calls = getattr(os, name), []

    def call(*arguments: object) -> None:
        calls.append(arguments)
        last = len(calls) == int(number)
        if last and what == name:
            os.kill(os.getpid(), signal.SIGKILL)
        works(*arguments)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, call)


def announce() -> None:
    train = run.Run.train

    def ready(self: run.Run) -> bool:
        print("ready", flush=True)
        return train(self)

    run.Run.train = ready


moment, *sys.argv[1:] = sys.argv[1:]
if moment != "-" and os.environ.get("RANK", "0") == "0":
    die_at(moment)
announce()
runpy.run_module("pygen", run_name="__main__")
