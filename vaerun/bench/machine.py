"""The machine: rates of the basic operations, from which floors follow, and its description."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

from vaerun.bench.case import BenchSettings, Call, Work


def time_call(call: Call, setting: BenchSettings) -> float:
    """Seconds of one call, including its work on the device."""
    return time_calls(call, setting, 1)


def time_calls(call: Call, setting: BenchSettings, count: int) -> float:
    """Mean seconds of a call, over `count` calls in a row."""
    setting.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        call()
    setting.synchronize()
    return (time.perf_counter() - started) / count


class Rates:
    """The machine's rates, measured again in every round of a benchmark, since the load on the machine varies.

    Arguments:
        setting: device.
        batch, dim: B and d of the batched factorisations and solves to measure; 0: none.
    """

    def __init__(self, setting: BenchSettings, batch: int = 0, dim: int = 0) -> None:
        self.setting, device = setting, setting.device
        n = 256 if setting.quick else 2048
        a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
        source = torch.rand((1 << 16) if setting.quick else (1 << 26), device=device)
        target = torch.empty_like(source)
        self.calls: dict[str, Call] = {"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}
        self.amounts = {"product": 2.0 * n**3, "copy": 2.0 * source.numel() * source.element_size()}
        if batch:
            eye = torch.eye(dim, device=device)
            spread = torch.rand(batch, dim, dim, device=device)
            precision = eye + spread @ spread.mT
            factor, column = torch.linalg.cholesky(precision), torch.rand(batch, dim, 1, device=device)
            self.calls["factor"] = lambda: torch.linalg.cholesky_ex(precision)
            self.calls["solve"] = lambda: torch.linalg.solve_triangular(factor, column, upper=False)
            self.amounts |= {"factor": 1.0, "solve": 1.0}
        self.seconds: dict[str, list[float]] = {name: [] for name in self.calls}
        for call in self.calls.values():
            time_call(call, setting)

    def sample(self) -> None:
        """Measure each rate once."""
        # A single small batch on a GPU measures the launch; many in a row come closer to its time on the device.
        count = 50 if self.setting.device.type == "cuda" else 1
        for name, call in self.calls.items():
            self.seconds[name].append(time_calls(call, self.setting, count if name in ("factor", "solve") else 1))

    def rate(self, name: str) -> float:
        """Median rate: FLOP/s of `product`, bytes/s of `copy` (read and written), batches/s of `factor` and `solve`."""
        return self.amounts[name] / statistics.median(self.seconds[name])

    def floor(self, work: Work) -> float:
        """Seconds that this work takes at these rates, one operation after the other."""
        total = work.flops / self.rate("product") + work.bytes / self.rate("copy")
        if work.factorisations:
            total += work.factorisations / self.rate("factor")
        if work.solves:
            total += work.solves / self.rate("solve")
        return total


def describe_machine(setting: BenchSettings) -> dict[str, str]:
    """Hardware, threads, versions, commit and time of a measurement."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    facts = {
        "processor": f"{processor}, {os.cpu_count()} cores",
        "device": str(setting.device),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "vaerun": metadata.version("vaerun"),
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }
    if setting.device.type == "cuda":
        facts["device"] = f"{setting.device}, {torch.cuda.get_device_name(setting.device)}"
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return facts
    if commit.returncode == 0:
        facts["commit"] = commit.stdout.strip()
    return facts
