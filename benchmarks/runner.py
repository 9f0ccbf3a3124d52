"""Runs cases: a process for each case and heap mode, one at a time, and what is known of the machine they ran on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .cases import Case

# Page faults make outputs that the heap has returned to the system several times slower to write: with these set
# before start, glibc keeps what was freed. Any other value of theirs in the caller's environment is dropped.
HEAPS: dict[str, dict[str, str]] = {
    "retained": {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
        "MALLOC_TOP_PAD_": str(1 << 26),
    },
    "default": {},
}
JUDGED = "retained"  # the heap mode that goals are judged on
TIMEOUT_S = 900.0

# {"host": {...}, "rows": [{"op", "case", "mode" (fwd, bwd, full, call), "dtype", "device", "heap" (retained, default),
# "impl" (pygen, eager, compile, peer:NAME; in mode call also empty), "median_s", "p20_s", "p80_s", "ratio" (its median
# over pygen's), "pct_limit", "peak_bytes", "gate" (passed, failed: no figures)}]}
Result = dict[str, Any]


def heaps(device: torch.device, quick: bool) -> tuple[str, ...]:
    """The heap modes of a run. A GPU's caching allocator retains what it has, whatever the C library does."""
    return (JUDGED,) if quick or device.type != "cpu" else tuple(HEAPS)


def environment(heap: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in HEAPS["retained"]}
    env.pop("OMP_WAIT_POLICY", None)  # a passive team wakes slowly: every arm of a benchmark gets OpenMP's default
    env["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compilers beside what is timed
    return env | HEAPS[heap]


def run_case(case: Case, heap: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """One case in one process. Raises RuntimeError with the process's last words when it fails."""
    spec = {"op": case.op, "case": case.name, "heap": heap, "device": str(device), "quick": quick}
    with tempfile.TemporaryDirectory() as folder:
        spec_path, result_path = Path(folder) / "spec.json", Path(folder) / "result.json"
        spec_path.write_text(json.dumps(spec))
        command = [sys.executable, "-m", f"{__package__}.worker", str(spec_path), str(result_path)]
        try:
            done = subprocess.run(
                command, env=environment(heap), capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"no result within {TIMEOUT_S:.0f} s") from None
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: " + " | ".join(done.stderr.strip().splitlines()[-3:]))
        result: dict[str, Any] = json.loads(result_path.read_text())
        return result


def run(
    cases: Sequence[Case], device: torch.device, quick: bool, report: Callable[[str], None] = lambda _: None
) -> Result:
    """All rows of some cases, and the host. report is called before each process with what it does."""
    rows: list[dict[str, Any]] = []
    host = describe_host(device)
    llc = host["llc_bytes"]
    facts: dict[str, Any] = {}
    failures: list[dict[str, str]] = []
    notes: dict[str, None] = {}  # an ordered set
    load = Load()
    for case in cases:
        for heap in heaps(device, quick):
            report(f"{case.key} ({heap} heap)")
            try:
                result = run_case(case, heap, device, quick)
            except RuntimeError as error:
                result = {"rows": [], "facts": {}, "failed": {"pygen": str(error)}, "notes": []}
            rows += result["rows"]
            host["threads"] = result.get("threads", host["threads"])
            if heap == JUDGED:
                facts[case.key] = result["facts"]
                moved = result["facts"].get("bytes", {}).get("fwd", 0)
                facts[case.key]["beyond_llc"] = bool(llc and moved > llc)
            for impl, reason in result["failed"].items():
                failures.append({"case": case.key, "heap": heap, "impl": impl, "reason": reason})
            notes |= dict.fromkeys(result["notes"])
    host |= {"quick": quick, "load": load.since(), "cases": facts, "failures": failures, "notes": list(notes)}
    return {"host": host, "rows": rows}


# --- the host ---------------------------------------------------------------------------------------------------------


def describe_host(device: torch.device) -> dict[str, Any]:
    host = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "llc_bytes": llc_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pygen": __version__,
        "device": "cpu",
        "heaps": {name: HEAPS[name] for name in HEAPS},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        host |= {"device": properties.name, "llc_bytes": properties.L2_cache_size, "cuda": torch.version.cuda}
    return host


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def llc_bytes() -> int | None:
    """Size of the last-level cache; None where the system does not say."""
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes: list[tuple[int, int]] = []
    for cache in caches:
        try:
            level, size = (cache / "level").read_text().strip(), (cache / "size").read_text().strip()
        except OSError:
            continue
        sizes.append((int(level), int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)))
    return max(sizes)[1] if sizes else None


class Load:
    """How busy others keep the machine during a run."""

    def __init__(self) -> None:
        self.average = _load_average()
        self.busy, self.total = _cpu_seconds()
        self.own = _own_seconds()

    def since(self) -> dict[str, float | None]:
        """Load averages of the last minute before and after, and the share of the CPUs that other processes used."""
        busy, total = _cpu_seconds()
        others = max(0.0, busy - self.busy - (_own_seconds() - self.own))
        share = round(others / (total - self.total), 3) if total > self.total else None
        return {"before": self.average, "after": _load_average(), "others": share}


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu_seconds() -> tuple[float, float]:
    """Busy and total seconds of all CPUs since start of the system; (0, 0) where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0, 0.0
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle and waiting for disks


def _own_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
