"""Re-evaluates a finished run with more samples, other diagnostics, or another data set of the same shape."""

from __future__ import annotations

import contextlib
import hashlib
import json
import stat
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vaerun.config.identity import identity
from vaerun.config.overrides import given_keys, parse_overrides
from vaerun.config.schema import Settings
from vaerun.data.dataset import ImageData, shorten
from vaerun.defaults import own_defaults
from vaerun.errors import InputError, RunError
from vaerun.evaluation.results import EvaluationResults
from vaerun.memory import reporting_out_of_memory
from vaerun.run import result
from vaerun.run.build import build_data
from vaerun.run.evaluate.descriptions import align_rows
from vaerun.run.evaluate.settings import merge_settings, take_data_changed
from vaerun.run.evaluate.write import (
    EVALUATING,
    WRITING,
    described_metrics,
    prefixed_metrics,
    read_arrays,
    write_evaluation,
)
from vaerun.run.family import family_of
from vaerun.run.idle import idle_evaluation
from vaerun.run.load import Run, load_run
from vaerun.signals import ShutdownSignal
from vaerun.storage.atomic import write_atomically
from vaerun.storage.run_dir import check_paths, lock_run_dir
from vaerun.text import print_output, printable, printable_lines
from vaerun.tracking.logger import END, RunLogger

MAX_STEPS = 10**15  # more than any run takes, and far below the limit of TensorBoard files


@dataclass(frozen=True)
class Reevaluation:
    """A later evaluation of a finished run.

    Attributes:
        run: the run, with its model.
        settings: settings of the run, with the overrides applied.
        data: data set to evaluate on.
        overrides: command-line overrides.
        step, epoch: step and epoch of the evaluated parameters.
    """

    run: Run
    settings: Settings
    data: ImageData
    overrides: list[str]
    step: int
    epoch: float

    @property
    def data_changed(self) -> bool:
        """Whether these are other data under the name of the run's data set."""
        recorded = self.run.result["protocol"].get("data_sha256")
        return self.settings.data.name == self.run.config.data.name and self.data.sha256 != recorded

    @property
    def label(self) -> str:
        """Name under which this evaluation is stored: DATA-SPLIT-DIGEST."""
        settings = identity(asdict(self.settings))
        chosen = {k: v for k, v in settings.items() if k.startswith(("evaluation.", "data.", "seed"))}
        content = json.dumps([chosen, self.data.sha256], sort_keys=True, default=str)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        return f"{self.data.name}-{self.settings.evaluation.split}-{digest}"

    def evaluate(self, stop: ShutdownSignal) -> EvaluationResults:
        """Evaluate the model, and add pictures of the data."""
        evaluation, model, data = self.settings.evaluation, self.run.model, self.data
        family = family_of(model)
        with reporting_out_of_memory(RunError, EVALUATING):
            results = family.evaluate(evaluation, model, data, seed=self.settings.seed, stop=stop)
            results.pictures |= family.data_pictures(model, getattr(data, evaluation.split))
        trained = [str(name) for name in (self.run.result.get("dataset") or {}).get("classes", data.class_names)]
        if model.classes and trained != list(data.class_names):
            results.warnings.append(
                f"the model was trained on the classes {shorten(trained)}, and those of {data.name} are "
                f"{shorten(data.class_names)}: they are taken to correspond in this order"
            )
        return results

    def record(self, results: EvaluationResults, seconds: float) -> dict[str, Any]:
        """The entry in result.json of an evaluation that took `seconds`."""
        settings, run = self.settings, self.run
        return {
            "command": ["vaerun-eval", f"run={run.folder}", *self.overrides],
            "metrics": prefixed_metrics(results, settings.evaluation.split),
            "details": results.details,
            "protocol": {
                "data": self.data.name,
                "family": settings.model.family,
                "units": run.result["protocol"]["units"],
                "likelihood": run.result["protocol"].get("likelihood"),
                "conditional": settings.model.conditional,
                "seed": settings.seed,
                **self.data.protocol,
                **({"data_changed": True} if self.data_changed else {}),
                **result.evaluation_protocol(settings.evaluation, self.data, run.model),
            },
            "timing": {"evaluation_seconds": round(seconds, 3)},
            "environment": result.environment(run.device),
        }

    def write(self, results: EvaluationResults, record: dict[str, Any]) -> None:
        """Add the results to the run directory; if that fails, none are added."""
        folder, step, prefix = self.run.folder, self.step, f"{self.label}/{self.settings.evaluation.split}"
        logger = RunLogger(folder, position=END, start_step=step, total_steps=step, images_per_step=1, show=False)
        path = folder / "per_example.npz"
        previous = path.read_bytes() if path.exists() else None
        try:
            write_evaluation(folder, results, prefix, logger, step, self.epoch, self.label)
            # Reload under the lock: another evaluation may have finished in the meantime.
            current = result.read_result(folder) or self.run.result
            evaluations = current.get("evaluations", {}) | {self.label: record}
            result.write_result(folder, current | {"evaluations": evaluations})
        except BaseException as error:
            if previous is not None:  # per-image values are meaningless without their record
                with contextlib.suppress(OSError, RunError):
                    write_atomically(path, previous)
            if isinstance(error, OSError):
                raise RunError(
                    f"cannot write to {folder}: {error}; free space and run the same command again"
                ) from error
            raise
        finally:
            logger.close()

    def summary(self, results: EvaluationResults, record: dict[str, Any]) -> str:
        """Format the results as a table."""
        run, protocol, split = self.run, record["protocol"], self.settings.evaluation.split
        other = "other data: " if self.data_changed else ""
        header = (
            f"{run.result['model']} trained on {run.result['data']}, evaluated on {other}{self.data.name}: mean over "
            f"{protocol['evaluated_images']} {split} images (± standard error over them), {protocol['units']}"
        )
        rows = align_rows(described_metrics(results, protocol, split))
        return "\n".join([*results.texts, header, *rows, f"recorded in {run.folder} as {self.label}"])


def reevaluate(folder: Path, overrides: list[str], stop: ShutdownSignal | None = None) -> dict[str, Any]:
    """Evaluate a finished run and return the record that was added to its result.json.

    Arguments:
        folder: the run directory.
        overrides: KEY=VALUE for `seed`, `trainer.device` and keys of `data` and `evaluation`; data=NAME selects
            another data set.
        stop: shutdown signals.

    Raises InputError, RunError or Interrupted (errors.py).
    """
    with own_defaults(), stop or ShutdownSignal() as stop:
        torch.distributions.Distribution.set_default_validate_args(False)
        device = parse_overrides(overrides).get("trainer", {}).get("device", "auto")
        run = load_run(folder, device)
        _check_links(folder)
        if run.result["status"] != "ok":
            raise InputError(
                f"{folder} is not finished (status: {run.result['status']}): run its command again to finish it first"
            )
        changes = parse_overrides(overrides, own_data=run.config.data.name)
        changed = take_data_changed(changes)
        run, settings = _locate_data(run, merge_settings(run.config, changes), changes, changed)
        evaluation = Reevaluation(run, settings, _load_data(run, settings), overrides, *_trained_steps(run))
        family_of(run.model).check(settings, run.model, evaluation.data)
        idle = idle_evaluation(settings.evaluation, run.model, evaluation.data, given_keys(overrides))
        _check_output_paths(run.folder, evaluation.label)
        with lock_run_dir(run.folder, "copy the run's directory and evaluate the copy"), stop.deferred():
            started = time.perf_counter()
            per_image = run.folder / "per_example.npz"
            read_arrays(per_image)  # report a damaged file before the work, not after it
            if not per_image.exists():
                print_output(
                    f"vaerun-eval: warning: {printable(run.folder)} has no per_example.npz any more", sys.stderr
                )
            results = evaluation.evaluate(stop)
            for line in [*idle, *results.warnings]:
                print_output(f"vaerun-eval: warning: {printable(line)}", sys.stderr)
            record = evaluation.record(results, time.perf_counter() - started)
            if results.non_finite_metric:
                metric = f"{settings.evaluation.split}/{results.non_finite_metric}"
                raise RunError(f"{metric} is not finite for some images of {evaluation.data.name}")
            with reporting_out_of_memory(RunError, WRITING):
                evaluation.write(results, record)
            # An untrusted record may contain control codes.
            print_output(printable_lines(evaluation.summary(results, record)))
            return record


def _check_links(folder: Path) -> None:
    """Raise InputError if a file to append to is a link; load_run only rejects links that leave the folder."""
    for path in (folder / name for name in (".lock", "metrics.jsonl")):
        try:
            status = path.lstat()
        except OSError:
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise InputError(f"{path} is a link or not a file: replace it by a copy to evaluate this run")


def _check_output_paths(folder: Path, label: str) -> None:
    """Raise InputError, before any work, if the files of this evaluation cannot be written."""
    figures = folder / "figures" / label
    check_paths((folder / "figures", figures), (folder / f"arrays-{label}.npz", *sorted(figures.glob("*.png"))))


def _trained_steps(run: Run) -> tuple[int, float]:
    """Step and epoch of the selected parameters. Raises InputError if result.json is damaged."""
    try:
        steps, epoch = int(run.result["timing"]["train_steps"]), float(run.result["protocol"]["selected_epoch"])
        str(run.result["protocol"]["units"]), str(run.result["model"]), str(run.result["data"])
        if not isinstance(run.result.get("evaluations", {}), dict):
            raise TypeError("evaluations is not a mapping")
        if not (0 <= steps < MAX_STEPS and 0 <= epoch < MAX_STEPS):
            raise ValueError(f"after {steps:.4g} steps and {epoch:.4g} epochs")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise InputError(f"{run.folder / 'result.json'} is damaged ({reason}): train the run again") from error
    return steps, epoch


def _locate_data(run: Run, settings: Settings, changes: dict[str, Any], changed: bool) -> tuple[Run, Settings]:
    """The run with its data where `data.root` and `data.path` say, and the settings with the recorded path.

    The name of an evaluation does not depend on where the run's data are. Another data set is left as it is.
    """
    recorded, data = run.config.data, settings.data
    if data.name != recorded.name:
        return run, settings
    located = replace(run.config, data=replace(recorded, root=data.root))
    path = data.path if "path" in changes.get("data", {}) else None
    run = replace(run, config=located, data_path=path, data_changed=changed)
    return run, replace(settings, data=replace(data, path=recorded.path))


def _load_data(run: Run, settings: Settings) -> ImageData:
    """Load the data set to evaluate on. Raises InputError if the model cannot be applied to its images."""
    if settings.data == run.config.data:
        data = run.data
    elif settings.data.name == run.config.data.name:
        data = run.load_data(settings.data)
    else:
        data = build_data(settings.data, run.device)
    model = run.model
    if data.image_shape != model.image_shape:
        shapes = ["x".join(map(str, shape)) for shape in (data.image_shape, model.image_shape)]
        raise InputError(f"data set {data.name} has images of {shapes[0]}, but the run's model needs {shapes[1]}")
    if model.classes and data.classes != model.classes:
        raise InputError(
            f"the run's model is conditional on {model.classes} classes, but data set {data.name} has {data.classes}"
        )
    if run.config.model.likelihood == "bernoulli" and not data.binary:
        raise InputError(f"the run's model needs pixels that are 0 or 1, but data set {data.name} has others")
    return data
