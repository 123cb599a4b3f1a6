"""Peak memory of a form: above what it needs before its first call, in a process of its own.

    python -m vaerun.bench.memory BENCHMARK CASE FORM DEVICE QUICK THREADS     prints bytes

On a CPU it is the largest resident size, as the kernel counts it (Linux only), on a GPU what torch allocated.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from pathlib import Path

import torch

from vaerun.bench.case import Setting

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CALLS = 2  # the first also makes gradients and the optimiser's moments, which stay


def peak(benchmark: str, case: str, form: str, setting: Setting) -> int | None:
    """Bytes, or None where this system does not count them."""
    if setting.device.type != "cuda" and not CLEAR.exists():
        return None
    words = [benchmark, case, form, str(setting.device), str(int(setting.quick)), str(torch.get_num_threads())]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "vaerun.bench.memory", *words], capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(f"peak memory of {case}, {form}: {run.stderr.strip()[-2000:]}")
    return int(run.stdout.split()[-1])


def _read(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    from vaerun.bench.names import BENCHMARKS

    benchmark, name, form, device, quick, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    setting = Setting(torch.device(device), bool(int(quick)))
    case = next(case for case in BENCHMARKS[benchmark](setting) if case.name == name)
    call = case.forms[form]()
    if setting.device.type == "cuda":
        setting.wait()
        before = torch.cuda.memory_allocated(setting.device)
        torch.cuda.reset_peak_memory_stats(setting.device)
    else:
        with contextlib.suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)  # what was freed while preparing would serve the calls unseen
        CLEAR.write_text("5")  # the largest resident size starts anew from the present one
        before = _read("VmRSS")
    for _ in range(CALLS):
        call()
    setting.wait()
    if setting.device.type == "cuda":
        print(torch.cuda.max_memory_allocated(setting.device) - before)
    else:
        print(_read("VmHWM") - before)


if __name__ == "__main__":
    main()
