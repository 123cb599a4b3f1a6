"""Killing runs: `python -m support.robustness.killing JOBFILE` kills runs of a model at many points.

One process imports what a run needs; each attempt at a run is a fork of it, so that nearly all of its time goes to
training, evaluation and writing. An attempt ends by SIGKILL, from outside after a random time, or from inside at the
n-th point of a kind:

    time    at any time
    call    before a file of the run is opened, renamed, linked or removed, or a directory is created
    write   in the middle of a write, with half of it in the file
    torn    before an fsync, with what was written since the last one truncated
    placed  after a file was renamed into place

Or the disk is full from the n-th point on, and the run has to report that:

    full    a write (half of it is done), an fsync, a new file, directory or link fails

Or memory runs out once, and the run has to report that, unless it goes on with smaller batches:

    memory  at a call of a function of vaerun, or at one of a builtin function from there

Once it is left to finish, the run must equal one that was never killed.
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
from support.robustness.fault_injection import FaultInjector
from support.runs.adversarial_runs import NETWORKS
from support.runs.commands import FAST_AMIS, flat, lasting, tensorboard

from vaerun.config.plugins import builtin_config_dir
from vaerun.config.schema import Settings
from vaerun.config.settings import to_settings
from vaerun.errors import InputError, RunError
from vaerun.evaluation.plots import charts  # noqa: F401
from vaerun.memory import reporting_out_of_memory
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
    *FAST_AMIS,
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
MAXIMUM_KILLS = 6  # of one run, which is then left to finish
KillPoint = tuple[str | None, int, float, float]
"""(kind, n, time in seconds, fraction of a write that is done)."""
REPORTED = {"full": "No space left on device", "memory": "memory"}
"""Kinds that a run reports in a line, and what it contains."""
HALVED = "at once, continuing with"  # an evaluation in smaller batches rounds differently
NO_KILL: KillPoint = (None, 0, 0.0, 0.0)
EXPECTED_LINES = ("epoch ", "vaerun: data: ", "vaerun: warning: mode collapse")  # printed by any run with so few steps


def compose_settings(family: str, words: list[str]) -> Settings:
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return to_settings(hydra.compose("config", [*FAMILIES[family], *QUICK, *words]))


def attempt(
    settings: Settings, folder: Path, kind: str | None, n: int, seconds: float, fraction: float
) -> tuple[int, Any]:
    """Attempt the run in a fork; return its exit status (negative: killed), its counts if it ended, and seconds."""
    reader, writer = os.pipe()
    counts = folder.with_suffix(".counts")
    modules = set(sys.modules)
    pid = os.fork()
    if not pid:
        status = 3
        try:
            os.close(reader)
            with open(folder.with_suffix(".log"), "ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            faults = FaultInjector(folder, kind, n, fraction)
            faults.install()
            recording = Experiment.open_logs

            def signal_start(*arguments: Any) -> Any:
                os.write(writer, b".")
                return recording(*arguments)

            Experiment.open_logs = signal_start  # type: ignore[method-assign]
            with reporting_out_of_memory(RunError, "memory ran out"):  # as every command does
                Experiment(settings, folder, ["tests"], None, ShutdownSignal()).run()
            faults.enabled = False
            counts.write_text(json.dumps({"counts": faults.counts, "modules": sorted(sys.modules.keys() - modules)}))
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
    os.close(writer)
    os.read(reader, 1)  # it writes from now on, or has ended
    os.close(reader)
    started = time.monotonic()
    if kind == "time":
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    report = json.loads(counts.read_text()) if code == 0 else None
    return code, (report, time.monotonic() - started)


def read_run(folder: Path) -> dict[str, Any]:
    """The content of a run directory that must not depend on kills, by name."""
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


def differences(a: Any, b: Any) -> list[str]:
    """Names of what differs in any bit."""
    a, b = flat(a), flat(b)
    differing = [k for k in a.keys() & b.keys() if not is_identical(a[k], b[k])]
    return sorted([*differing, *(a.keys() ^ b.keys())])


def is_identical(a: Any, b: Any) -> bool:
    """Whether two values are equal to the bit, NaN included."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b


class KillHarness:
    """Kills runs of one model, resumes them, and compares them with one that was never killed."""

    def __init__(self, family: str, folder: Path, words: list[str]) -> None:
        self.settings, self.folder = compose_settings(family, words), folder
        self.folder.mkdir(parents=True)
        reference = folder / "whole"
        code, (report, self.seconds) = attempt(self.settings, reference, *NO_KILL)
        assert code == 0, reference.with_suffix(".log").read_text()
        self.counts = report["counts"]
        for name in report["modules"]:  # so that the forks need not import them again
            with suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a fork copies the pages that the collector touches
        self.expected = read_run(reference)
        self.runs, self.kills, self.steps = 0, Counter[str](), list[int]()
        self.lost: list[dict[str, Any]] = []
        self.unclear: list[dict[str, Any]] = []
        self.different: list[dict[str, Any]] = []

    def run(self, plan: list[KillPoint]) -> None:
        """A run that is killed at these points in turn and finally left to finish."""
        run, code = self.folder / f"run{self.runs}", -signal.SIGKILL
        self.runs += 1
        log = run.with_suffix(".log")
        for point in [*plan, NO_KILL]:
            logged = log.stat().st_size if log.exists() else 0
            code, _ = attempt(self.settings, run, *point)
            if point[0] in REPORTED and code in (1, 2):
                lines = log.read_bytes()[logged:].decode().splitlines()
                errors = [line for line in lines if not line.startswith(EXPECTED_LINES)]
                if len(errors) != 1 or REPORTED[point[0]] not in errors[0]:
                    self.unclear.append({"plan": plan, "lines": lines})
            elif code != -signal.SIGKILL:
                break
            self.kills[str(point[0])] += 1
            self.steps.append(last_step(run))
        if code:
            self.lost.append({"run": str(run), "plan": plan, "log": log.read_text()[-2000:]})
        elif HALVED not in log.read_text() and (names := differences(self.expected, read_run(run))):
            self.different.append({"run": str(run), "plan": plan, "names": names[:20]})
        else:
            shutil.rmtree(run)

    def kill_at_random(self, kills: int, seed: int, kinds: Sequence[str] = ("time", "time", *KINDS)) -> None:
        """Kill `kills` times in all, each run a few times."""
        choose = random.Random(seed)
        target = self.kills.total() + kills
        while (left := target - self.kills.total()) > 0:
            chosen = [choose.choice(kinds) for _ in range(min(left, choose.randint(1, MAXIMUM_KILLS)))]
            self.run(
                [
                    (
                        kind,
                        choose.randint(1, self.counts.get(kind, 1)),
                        choose.uniform(0, self.seconds),
                        choose.random(),
                    )
                    for kind in chosen
                ]
            )

    def kill_everywhere(self, kinds: Sequence[str]) -> None:
        """Kill once at every point that a run passes."""
        for kind in kinds:
            for n in range(1, self.counts[kind] + 1):
                self.run([(kind, n, 0.0, 0.5)])

    def outcome(self) -> dict[str, Any]:
        """What was killed how often and after which steps, and the runs that were lost or differ."""
        names = ("runs", "kills", "steps", "lost", "different", "unclear", "counts", "seconds")
        return {name: getattr(self, name) for name in names}


def last_step(run: Path) -> int:
    """The last logged step of an attempt; -1: none."""
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
        killing = KillHarness(task["family"], Path(job["folder"]) / name, task.get("words", []))
        if "kills" in task:
            killing.kill_at_random(task["kills"], task["seed"], task.get("kinds", ["time", "time", *KINDS]))
        else:
            killing.kill_everywhere(task.get("kinds", KINDS))
        outcomes[name] = killing.outcome()
        Path(job["outcome"]).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1])
