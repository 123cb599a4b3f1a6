"""Times of whole commands: from starting `vaerun` to its first training step, and data preparation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vaerun.bench.case import BenchSettings, Call, Case
from vaerun.errors import RunError

TIMEOUT = 300.0  # seconds


def _environment(cache: str) -> dict[str, str]:
    return os.environ | {"VAERUN_CACHE": cache, "PYTHONWARNINGS": "ignore"}


def first_step(data: str, cache: str) -> Call:
    """Start a one-step run in a temporary directory and wait until the step is in metrics.jsonl."""

    def call() -> None:
        with tempfile.TemporaryDirectory(prefix="vaerun-bench-") as folder:
            output = Path(folder) / "run"
            command = [sys.executable, "-m", "vaerun.cli.main", "model=vae", f"data={data}", f"output_dir={output}"]
            command += ["trainer.max_steps=1", "trainer.log_every=1", "evaluation.images=1", "evaluation.samples=1"]
            command += ["evaluation.latent=false", "evaluation.pictures=0"]
            with open(Path(folder) / "log", "wb") as log:
                run = subprocess.Popen(command, stdout=log, stderr=log, env=_environment(cache))
            try:
                deadline = time.monotonic() + TIMEOUT
                while not _has_step(output / "metrics.jsonl"):
                    if run.poll() not in (None, 0) or time.monotonic() > deadline:
                        lines = (Path(folder) / "log").read_text(errors="replace").strip().splitlines()
                        raise RunError(f"the timed run failed or hangs: {lines[-1] if lines else 'no output'}")
                    time.sleep(0.005)
            finally:
                run.kill()
                run.wait()

    return call


def _has_step(file: Path) -> bool:
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return False
    for line in lines:
        try:
            if any(key.startswith("train/") for key in json.loads(line)):
                return True
        except json.JSONDecodeError:  # a partial line
            continue
    return False


def _imports() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", "import torch, hydra"], check=True)


def startup(setting: BenchSettings) -> Iterator[Case]:
    """From starting the process to the first logged step, with the data prepared."""
    with tempfile.TemporaryDirectory(prefix="vaerun-bench-") as cache:
        for data in ("digits",) if setting.quick or not os.environ.get("VAERUN_DATA") else ("digits", "mnist"):
            yield Case(
                f"vaerun model=vae data={data}: start to the first logged step",
                "start",
                {
                    "vaerun": lambda data=data: first_step(data, cache),  # type: ignore[misc]
                    "python importing torch and hydra": lambda: _imports,
                },
                memory=False,
            )


def prepare(setting: BenchSettings) -> Iterator[Case]:
    """vaerun-data cifar10 into an empty cache, from the packed file in VAERUN_DATA."""
    name = "digits" if setting.quick else "cifar10"
    root = os.environ.get("VAERUN_DATA")
    if name == "cifar10" and (not root or not (Path(root) / "cifar10.npz").exists()):
        yield Case("vaerun-data cifar10", "preparation", {}, notes=["skipped: no cifar10.npz in VAERUN_DATA"])
        return

    def call() -> None:
        with tempfile.TemporaryDirectory(prefix="vaerun-bench-") as cache:
            command = [sys.executable, "-m", "vaerun.cli.data", name]
            process = subprocess.run(command, env=_environment(cache), capture_output=True, text=True)
            if process.returncode:
                lines = process.stderr.strip().splitlines()
                raise RunError(f"vaerun-data {name} failed: {lines[-1] if lines else 'no output'}")

    yield Case(f"vaerun-data {name} into an empty cache", "preparation", {"vaerun": lambda: call}, memory=False)
