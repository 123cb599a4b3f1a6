"""Runs that are killed: `python -m support.robustness.killing JOBFILE` kills runs of a model at many moments.

One process imports what a run needs; each attempt at a run is a fork of it, so that nearly all of an attempt's time is
training, evaluation and writing. An attempt ends by SIGKILL, from outside after a random time, or from inside at the
n-th place of a kind:

    time    whenever it is
    call    before a file of the run is opened, renamed, linked or removed, or a folder is made
    write   in the middle of a write, half of which is in the file
    torn    before a flush to the disk, what was written since the last one cut short
    placed  after a file was put in its place

Or from the n-th place on the disk is full, and the run has to say so:

    full    a write (half of it is done), a flush, a new file, folder or link fails

When it is let through the run must have what the run has that was never killed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import sklearn.datasets  # noqa: F401  before the fork
import tensorboard.compat.proto.event_pb2
import torch
from support.robustness.places import Places
from support.runs.adversarial_runs import NETWORKS
from support.runs.commands import flat, lasting, tensorboard

from vaerun.config.plugins import builtin_config_dir
from vaerun.config.schema import Settings
from vaerun.config.settings import check
from vaerun.errors import InputError, RunError
from vaerun.evaluation.plots import charts  # noqa: F401
from vaerun.run.experiment import Experiment
from vaerun.signals import ShutdownSignal

# 250 images in batches of 64: epochs of 4 steps whose last batch has 58; 12 steps are 3 epochs. A checkpoint each step.
QUICK = """trainer.device=cpu trainer.batch_size=64 trainer.max_steps=12 trainer.log_every=3 data.train_images=250
trainer.checkpoint_seconds=0 evaluation.images=20 evaluation.pictures=2""".split()  # noqa: SIM905
LIKELIHOOD = [
    "model.encoder.hidden=[8]",
    "model.decoder.hidden=[8]",
    "model.latent_dim=3",
    "evaluation.samples=20",
    "evaluation.latent=false",
]
ADVERSARIAL = ["model.latent_dim=4", "evaluation.generated.samples=50", "evaluation.quality=false"]
FAMILIES = {
    "vae": ["model=vae", *LIKELIHOOD],
    "sa_vae": ["model=sa_vae", "model.inference.steps=2", *LIKELIHOOD],
    "vlae": ["model=vlae", "model.inference.steps=2", *LIKELIHOOD],
    "gan": ["model=gan", *NETWORKS["gan_mlp"], "trainer.average=0.9", "estimator.discriminator_steps=2", *ADVERSARIAL],
    "infogan": ["model=infogan", *NETWORKS["gan_mlp"], *ADVERSARIAL],
}
KINDS = ("call", "write", "torn", "placed")
MOST = 6  # kills of one run, which then goes on to its end
Place = tuple[str | None, int, float, float]
"""Of a kill: the kind, the n-th of it, the time in seconds, the share of a write that is done."""
THROUGH: Place = (None, 0, 0.0, 0.0)
USUAL = ("epoch ", "vaerun: warning: mode collapse")  # what runs of so few steps say anyway


def settings_of(family: str, words: list[str]) -> Settings:
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return check(hydra.compose("config", [*FAMILIES[family], *QUICK, *words]))


def attempt(settings: Settings, folder: Path, kind: str | None, n: int, moment: float, share: float) -> tuple[int, Any]:
    """One attempt at the run, in a fork: its exit status (negative: killed); where it ended, counts and seconds."""
    begun, told = os.pipe()
    counts = folder.with_suffix(".counts")
    known = set(sys.modules)
    pid = os.fork()
    if not pid:
        status = 3
        try:
            os.close(begun)
            with open(folder.with_suffix(".log"), "ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            places = Places(folder, kind, n, share)
            places.install()
            recording = Experiment.recording

            def first(*arguments: Any) -> Any:
                os.write(told, b".")
                return recording(*arguments)

            Experiment.recording = first  # type: ignore[method-assign]
            Experiment(settings, folder, ["tests"], None, ShutdownSignal()).run()
            places.on = False
            counts.write_text(json.dumps({"counts": places.counts, "modules": sorted(sys.modules.keys() - known)}))
            status = 0
        except (RunError, InputError) as error:
            status = 1 if isinstance(error, RunError) else 2
            print(f"vaerun: error: {error}", file=sys.stderr)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(told)
    os.read(begun, 1)  # it writes from now on, or has ended
    os.close(begun)
    started = time.monotonic()
    if kind == "time":
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    found = json.loads(counts.read_text()) if code == 0 else None
    return code, (found, time.monotonic() - started)


def contents(folder: Path) -> dict[str, Any]:
    """What a run directory holds and must hold however often it was killed, by name."""
    states = {name: lasting(folder, name) for name in ("last", "best")}
    result = json.loads((folder / "result.json").read_text())
    events = tensorboard(folder)
    tags = events.Tags()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    images = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    with np.load(folder / "per_example.npz") as archive:
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    return {
        "state": states,
        "result": {k: result[k] for k in ("status", "metrics", "protocol", "details", "error")},
        "metrics.jsonl": (folder / "metrics.jsonl").read_text(),
        "scalars": scalars,
        "images": images,
        "per_example": arrays,
        "figures": {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "figures").rglob("*.png"))},
        "temporary files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*.tmp")),
    }


def differences(one: Any, other: Any) -> list[str]:
    """Names of what is not the same to the bit."""
    one, other = flat(one), flat(other)
    differing = [k for k in one.keys() & other.keys() if not same(one[k], other[k])]
    return sorted([*differing, *(one.keys() ^ other.keys())])


def same(one: Any, other: Any) -> bool:
    """To the bit, NaN included."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
    return one == other


class Killing:
    """Kills runs of one model, lets them go on, and compares them with one that was never killed."""

    def __init__(self, family: str, folder: Path, words: list[str]) -> None:
        self.settings, self.folder = settings_of(family, words), folder
        self.folder.mkdir(parents=True)
        whole = folder / "whole"
        code, found = attempt(self.settings, whole, None, 0, 0.0, 0.0)
        assert code == 0, whole.with_suffix(".log").read_text()
        ended, self.seconds = found
        self.counts = ended["counts"]
        for name in ended["modules"]:  # what it imported is not to be imported by every fork again
            with suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a fork copies what the collector touches
        self.expected = contents(whole)
        self.runs, self.kills, self.steps = 0, Counter[str](), list[int]()
        self.lost: list[dict[str, Any]] = []
        self.unclear: list[dict[str, Any]] = []
        self.different: list[dict[str, Any]] = []

    def run(self, plan: list[Place]) -> None:
        """A run that meets these places in turn, and is let through at last."""
        run, code = self.folder / f"run{self.runs}", -signal.SIGKILL
        self.runs += 1
        log = run.with_suffix(".log")
        for place in [*plan, THROUGH]:
            said = log.stat().st_size if log.exists() else 0
            code, _ = attempt(self.settings, run, *place)
            if place[0] == "full" and code in (1, 2):
                lines = log.read_bytes()[said:].decode().splitlines()
                errors = [line for line in lines if not line.startswith(USUAL)]
                if len(errors) != 1 or "No space left on device" not in errors[0]:
                    self.unclear.append({"plan": plan, "lines": lines})
            elif code != -signal.SIGKILL:
                break
            self.kills[str(place[0])] += 1
            self.steps.append(step_of(run))
        if code:
            self.lost.append({"run": str(run), "plan": plan, "log": log.read_text()[-2000:]})
        elif names := differences(self.expected, contents(run)):
            self.different.append({"run": str(run), "plan": plan, "names": names[:20]})
        else:
            shutil.rmtree(run)

    def at_random(self, kills: int, seed: int, kinds: Sequence[str] = ("time", "time", *KINDS)) -> None:
        """Kill so many times in all, each run a few times."""
        choose = random.Random(seed)
        until = self.kills.total() + kills
        while (left := until - self.kills.total()) > 0:
            several = [choose.choice(kinds) for _ in range(min(left, choose.randint(1, MOST)))]
            self.run(
                [
                    (
                        kind,
                        choose.randint(1, self.counts.get(kind, 1)),
                        choose.uniform(0, self.seconds),
                        choose.random(),
                    )
                    for kind in several
                ]
            )

    def everywhere(self, kinds: Sequence[str]) -> None:
        """Kill once at each place that a run comes through."""
        for kind in kinds:
            for n in range(1, self.counts[kind] + 1):
                self.run([(kind, n, 0.0, 0.5)])

    def outcome(self) -> dict[str, Any]:
        """What was killed how often, after which steps, and what came of it."""
        names = ("runs", "kills", "steps", "lost", "different", "unclear", "counts", "seconds")
        return {name: getattr(self, name) for name in names}


def step_of(run: Path) -> int:
    """After how many recorded steps an attempt died; -1: before the first record."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"] if lines else -1
    except (OSError, ValueError, KeyError):
        return -1


def main(file: str) -> None:
    job = json.loads(Path(file).read_text())
    torch.set_num_threads(1)
    outcomes = {}
    for name, task in job["tasks"].items():
        killing = Killing(task["family"], Path(job["folder"]) / name, task.get("words", []))
        if "kills" in task:
            killing.at_random(task["kills"], task["seed"], task.get("kinds", ["time", "time", *KINDS]))
        else:
            killing.everywhere(task.get("kinds", KINDS))
        outcomes[name] = killing.outcome()
        Path(job["outcome"]).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1])
