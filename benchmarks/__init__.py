"""Benchmarks: ours, eager, torch.compile, peers and the hardware's limit, measured in the same seconds.

An op's file (`coupling.py`) says what is timed; the rest of this package is the same for every op:

- `cases.py`: what a case is, and the list of ops
- `worker.py`, `gate.py`, `timing.py`: one case in one process: correctness first, then the clock
- `runner.py`: a process for every case and heap mode; collects the rows
- `goals.py`, `goals.toml`: what the figures have to reach
- `report.py`, `plots.py`, `results.py`: tables, pictures, `RESULTS.md`

Entry points: `pygen bench`, `pytest benchmarks/`, `python -m pygen.benchmarks.results`.
"""
