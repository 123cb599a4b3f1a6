"""Times of whole commands: from the start of `vaerun` to its first training step, and the preparation of data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vaerun.bench.case import Call, Case, Setting
from vaerun.errors import RunError

LIMIT = 300.0  # seconds


def _environment(cache: str) -> dict[str, str]:
    return os.environ | {"VAERUN_CACHE": cache, "PYTHONWARNINGS": "ignore"}


def first_step(data: str, cache: str) -> Call:
    """Start a run of one step in a folder of its own and wait until the step's record is in metrics.jsonl."""

    def call() -> None:
        with tempfile.TemporaryDirectory(prefix="vaerun-bench-") as folder:
            output = Path(folder) / "run"
            words = ["model=vae", f"data={data}", "trainer.max_steps=1", "trainer.log_every=1", f"output_dir={output}"]
            words += ["evaluation.images=1", "evaluation.samples=1", "evaluation.latent=false", "evaluation.pictures=0"]
            with open(Path(folder) / "log", "wb") as log:
                run = subprocess.Popen(
                    [sys.executable, "-m", "vaerun.cli.main", *words], stdout=log, stderr=log, env=_environment(cache)
                )
            try:
                until = time.monotonic() + LIMIT
                while not _has_step(output / "metrics.jsonl"):
                    if run.poll() not in (None, 0) or time.monotonic() > until:
                        said = (Path(folder) / "log").read_text(errors="replace").strip().splitlines()
                        raise RunError(f"the run that was to be timed ended or hangs: {said[-1] if said else 'silent'}")
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
        except json.JSONDecodeError:  # half a line
            continue
    return False


def _imports() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", "import torch, hydra"], check=True)


def startup(setting: Setting) -> Iterator[Case]:
    """From the start of the process to the first step's record, data prepared."""
    with tempfile.TemporaryDirectory(prefix="vaerun-bench-") as cache:
        for data in ("digits",) if setting.quick or not os.environ.get("VAERUN_DATA") else ("digits", "mnist"):
            yield Case(
                f"vaerun model=vae data={data}: start to the record of the first step",
                "start",
                {
                    "vaerun": lambda data=data: first_step(data, cache),  # type: ignore[misc]
                    "python importing torch and hydra": lambda: _imports,
                },
                memory=False,
            )


def prepare(setting: Setting) -> Iterator[Case]:
    """vaerun-data cifar10 into an empty cache, from the prepared file in VAERUN_DATA."""
    name = "digits" if setting.quick else "cifar10"
    root = os.environ.get("VAERUN_DATA")
    if name == "cifar10" and (not root or not (Path(root) / "cifar10.npz").exists()):
        yield Case("vaerun-data cifar10", "preparation", {}, notes=["skipped: no cifar10.npz in VAERUN_DATA"])
        return

    def call() -> None:
        with tempfile.TemporaryDirectory(prefix="vaerun-bench-") as cache:
            words = [sys.executable, "-m", "vaerun.cli.data", name]
            done = subprocess.run(words, env=_environment(cache), capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().splitlines()
                raise RunError(f"vaerun-data {name} failed: {said[-1] if said else 'silent'}")

    yield Case(f"vaerun-data {name} into an empty cache", "preparation", {"vaerun": lambda: call}, memory=False)
