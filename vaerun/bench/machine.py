"""What the machine can do: rates of the operations that everything here is made of, and what it is."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

from vaerun.bench.case import Call, Setting, Work


def timed(call: Call, setting: Setting) -> float:
    """Seconds that one call takes, the device's part included."""
    return timed_calls(call, setting, 1)


def timed_calls(call: Call, setting: Setting, count: int) -> float:
    """Seconds of one of so many calls in a row."""
    setting.wait()
    started = time.perf_counter()
    for _ in range(count):
        call()
    setting.wait()
    return (time.perf_counter() - started) / count


class Rates:
    """The machine's rates, measured again in every round of a benchmark, as the machine's other work comes and goes.

    Arguments:
        setting: device.
        matrices, size: B and d of the small batched factorisations that are wanted; 0: none.
    """

    def __init__(self, setting: Setting, matrices: int = 0, size: int = 0) -> None:
        self.setting, device = setting, setting.device
        n = 256 if setting.quick else 2048
        a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
        source = torch.rand((1 << 16) if setting.quick else (1 << 26), device=device)
        target = torch.empty_like(source)
        self.calls: dict[str, Call] = {"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}
        self.amounts = {"product": 2.0 * n**3, "copy": 2.0 * source.numel() * source.element_size()}
        if matrices:
            eye = torch.eye(size, device=device)
            spread = torch.rand(matrices, size, size, device=device)
            precision = eye + spread @ spread.mT
            factor, column = torch.linalg.cholesky(precision), torch.rand(matrices, size, 1, device=device)
            self.calls["factor"] = lambda: torch.linalg.cholesky_ex(precision)
            self.calls["solve"] = lambda: torch.linalg.solve_triangular(factor, column, upper=False)
            self.amounts |= {"factor": 1.0, "solve": 1.0}
        self.seconds: dict[str, list[float]] = {name: [] for name in self.calls}
        for call in self.calls.values():
            timed(call, setting)

    def sample(self) -> None:
        """Measure each once."""
        # A GPU's small batches are over before the next is started: many in a row come closest to what they take.
        count = 50 if self.setting.device.type == "cuda" else 1
        for name, call in self.calls.items():
            self.seconds[name].append(timed_calls(call, self.setting, count if name in ("factor", "solve") else 1))

    def rate(self, name: str) -> float:
        """Median: operations/s of `product`, bytes/s of `copy` (read and written), batches/s of `factor`, `solve`."""
        return self.amounts[name] / statistics.median(self.seconds[name])

    def floor(self, work: Work) -> float:
        """Seconds that so much work takes at these rates, one after the other."""
        total = work.products / self.rate("product") + work.bytes / self.rate("copy")
        if work.factors:
            total += work.factors / self.rate("factor")
        if work.solves:
            total += work.solves / self.rate("solve")
        return total


def description(setting: Setting) -> dict[str, str]:
    """What this was measured on and with: hardware, threads, versions, commit, time."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    found = {
        "processor": f"{processor}, {os.cpu_count()} cores",
        "device": str(setting.device),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "vaerun": metadata.version("vaerun"),
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }
    if setting.device.type == "cuda":
        found["device"] = f"{setting.device}, {torch.cuda.get_device_name(setting.device)}"
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return found
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found
