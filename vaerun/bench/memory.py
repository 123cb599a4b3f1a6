"""Peak memory of a variant beyond what it holds before its first call, measured in a separate process.

    python -m vaerun.bench.memory BENCHMARK CASE VARIANT DEVICE QUICK THREADS     prints bytes

On a CPU this is the peak resident size reported by the kernel (Linux only), on a GPU what torch allocated.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from pathlib import Path

import torch

from vaerun.bench.case import BenchSettings

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CALLS = 2  # the first also creates gradients and the optimiser's moments, which persist


def peak_memory(benchmark: str, case: str, variant: str, setting: BenchSettings) -> int | None:
    """Peak memory in bytes, or None if the system does not report it."""
    if setting.device.type != "cuda" and not CLEAR.exists():
        return None
    arguments = [benchmark, case, variant, str(setting.device), str(int(setting.quick)), str(torch.get_num_threads())]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "vaerun.bench.memory", *arguments], capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(f"peak memory of {case}, {variant}: {run.stderr.strip()[-2000:]}")
    return int(run.stdout.split()[-1])


def _read(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    from vaerun.bench.registry import BENCHMARKS

    benchmark, name, variant, device, quick, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    setting = BenchSettings(torch.device(device), bool(int(quick)))
    case = next(case for case in BENCHMARKS[benchmark](setting) if case.name == name)
    call = case.variants[variant]()
    if setting.device.type == "cuda":
        setting.synchronize()
        before = torch.cuda.memory_allocated(setting.device)
        torch.cuda.reset_peak_memory_stats(setting.device)
    else:
        with contextlib.suppress(AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)  # otherwise calls would reuse memory freed during preparation, unmeasured
        CLEAR.write_text("5")  # reset the peak resident size to the current one
        before = _read("VmRSS")
    for _ in range(CALLS):
        call()
    setting.synchronize()
    if setting.device.type == "cuda":
        print(torch.cuda.max_memory_allocated(setting.device) - before)
    else:
        print(_read("VmHWM") - before)


if __name__ == "__main__":
    main()
