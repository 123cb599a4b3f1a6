"""A finished run evaluated again: more samples, other quantities, another data set of the same shape."""

from __future__ import annotations

import contextlib
import hashlib
import json
import stat
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaerun.config.identity import identity
from vaerun.config.overrides import parse_overrides
from vaerun.config.plugins import group_file
from vaerun.config.schema import Settings
from vaerun.config.settings import check
from vaerun.config.validation import check_groups
from vaerun.data.dataset import ImageData
from vaerun.errors import InputError, RunError
from vaerun.evaluation.oom import evaluation_oom_raises
from vaerun.evaluation.results import EvaluationResults
from vaerun.run import result as records
from vaerun.run.build import build_data, resolve_device
from vaerun.run.evaluate.descriptions import align_rows
from vaerun.run.evaluate.write import described_metrics, prefixed_metrics, read_arrays, write_evaluation
from vaerun.run.family import family_of
from vaerun.run.load import Run, load_run
from vaerun.signals import ShutdownSignal
from vaerun.storage.atomic import write_atomically
from vaerun.storage.run_dir import check_paths, lock_run_dir
from vaerun.storage.yaml_files import read_yaml
from vaerun.text import printable, printable_lines
from vaerun.tracking.logger import END, RunLogger

PIXELS = ("binarize", "dequantize", "logit")  # what the model was trained on; another data set is treated likewise
MAX_STEPS = 10**15  # of a training that may have been: far below what TensorBoard's files hold


def reevaluate(folder: Path, overrides: list[str], stop: ShutdownSignal | None = None) -> dict[str, Any]:
    """Evaluate the run in this folder and return the record that was added to its result.json.

    Arguments:
        folder: a finished run's directory.
        overrides: KEY=VALUE for `seed`, `trainer.device` and keys of `data` and `evaluation`; data=NAME chooses data.
        stop: signals.

    Raises InputError, RunError, Interrupted (errors.py).
    """
    with stop or ShutdownSignal() as stop:
        torch.distributions.Distribution.set_default_validate_args(False)
        given = parse_overrides(overrides)
        where = given.get("data", {})
        run = load_run(
            folder,
            given.get("trainer", {}).get("device", "auto"),
            data_root=where.get("root") if isinstance(where, dict) else None,
        )
        _check_links(folder)
        if run.result["status"] != "ok":
            raise InputError(
                f"{folder} is not finished (status: {run.result['status']}): give its command again to finish it first"
            )
        settings = _merge_settings(run, given)
        data, facts = _load_data(run, settings), _trained_steps(run)
        family = family_of(run.model)
        family.check(settings, run.model, data)
        _check_output_paths(run.folder, _label(settings, data))
        with lock_run_dir(run.folder, "copy the run's directory and evaluate the copy"), stop.deferred():
            started = time.perf_counter()
            per_image = run.folder / "per_example.npz"
            read_arrays(per_image)  # a damaged one is told of before the work, not after it
            if not per_image.exists():
                print(f"vaerun-eval: warning: {printable(run.folder)} has no per_example.npz any more", file=sys.stderr)
            with evaluation_oom_raises():
                found = family.evaluate(settings.evaluation, run.model, data, seed=settings.seed, stop=stop)
                found.pictures |= family.data_pictures(run.model, getattr(data, settings.evaluation.split))
            for line in found.warnings:
                print(f"vaerun-eval: warning: {printable(line)}", file=sys.stderr)
            return _record(run, settings, data, found, overrides, facts, time.perf_counter() - started)


def _check_links(folder: Path) -> None:
    """Raises InputError where what is appended to is a file elsewhere too: load_run has seen to links that lead out."""
    for path in (folder / name for name in (".lock", "metrics.jsonl")):
        try:
            found = path.lstat()
        except OSError:
            continue
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise InputError(f"{path} is a link or no file: put a file of its own in its place to evaluate this run")


def _check_output_paths(folder: Path, label: str) -> None:
    """Raises InputError where this evaluation's files cannot be put: found after the work it would have been lost."""
    own = folder / "figures" / label
    check_paths((folder / "figures", own), (folder / f"arrays-{label}.npz", *sorted(own.glob("*.png"))))


def _label(settings: Settings, data: ImageData) -> str:
    """What this evaluation is recorded as: DATA-SPLIT-DIGEST."""
    chosen = {k: v for k, v in identity(asdict(settings)).items() if k.startswith(("evaluation.", "data.", "seed"))}
    digest = hashlib.sha256(json.dumps([chosen, data.sha256], sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{data.name}-{settings.evaluation.split}-{digest}"


def _trained_steps(run: Run) -> tuple[int, float]:
    """Steps and epochs of the parameters. Raises InputError for a record that does not hold what it should."""
    try:
        steps, epoch = int(run.result["timing"]["train_steps"]), float(run.result["protocol"]["selected_epoch"])
        str(run.result["protocol"]["units"]), str(run.result["model"]), str(run.result["data"])
        if not isinstance(run.result.get("evaluations", {}), dict):
            raise TypeError("evaluations is no mapping")
        if not (0 <= steps < MAX_STEPS and 0 <= epoch < MAX_STEPS):
            raise ValueError(f"after {steps:.4g} steps and {epoch:.4g} epochs")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        why = printable(f"{type(error).__name__}: {error}", 200)
        raise InputError(f"{run.folder / 'result.json'} is damaged ({why}): train the run again") from error
    return steps, epoch


def _merge_settings(run: Run, overrides: dict[str, Any]) -> Settings:
    """The run's settings with these changed. Raises InputError for what does not fit."""
    plain: dict[str, Any] = asdict(run.config)
    data = overrides.get("data", {})
    before = plain["data"]
    name = data.get("name", before["name"])
    if not isinstance(name, str):
        raise InputError(f"data.name must be a string, got {printable(name, 100)}: data=NAME chooses data")
    known = read_yaml(group_file("data", name))
    for key in data:
        if key not in known or (key == "source" and "name" not in data):
            raise InputError(f"data.{key} is no key of data={known['name']} that can be set")
    if "name" in data:  # another data set's own keys, and the run's pixels
        plain["data"] = {k: before[k] for k in PIXELS}
        data = {k: v for k, v in data.items() if k not in PIXELS or v != known[k]}
    if any(data.get(k, before[k]) != before[k] for k in PIXELS):
        raise InputError(f"data.{'/'.join(PIXELS)} are what the model was trained on: train anew to change them")
    _check_evaluation_keys(run, overrides.get("evaluation", {}))
    changed = {**overrides, "data": data}
    check_groups(changed)
    try:
        merged = OmegaConf.merge(OmegaConf.create(plain), OmegaConf.create(changed))
    except OmegaConfBaseException as error:
        # Where a list and keys meet OmegaConf does not say which setting it is.
        key = error.full_key or _mismatched_key(plain, changed)
        raise InputError(f"{key} must be a list, or a group of keys, as it was for the run") from error
    return check(merged)  # type: ignore[arg-type]


def _mismatched_key(before: dict[str, Any], given: dict[str, Any], prefix: str = "") -> str:
    """The first setting that is given keys where it has none, or the other way about."""
    for name, value in given.items():
        was = before.get(name)
        if isinstance(value, dict) and isinstance(was, dict):
            if found := _mismatched_key(was, value, f"{prefix}{name}."):
                return found
        elif isinstance(value, dict | list) and isinstance(was, dict | list) and type(value) is not type(was):
            return f"{prefix}{name}"
    return ""


def _check_evaluation_keys(run: Run, overrides: dict[str, Any]) -> None:
    """Raises InputError for keys of `evaluation` that mean nothing for the run's family of models."""
    file = "adversarial" if run.config.model.family == "adversarial" else "default"
    known = read_yaml(group_file("evaluation", file))
    for key, value in overrides.items():
        if key in ("gaps", "gradient_noise", "parzen"):  # of which there is more to say
            continue
        inner = [f"{key}.{k}" for k in value if k not in known[key]] if _is_group(known.get(key), value) else []
        for unknown in [key] if key not in known else inner:
            if hasattr(run.config.evaluation, key):  # else the schema says what was meant
                raise InputError(f"evaluation.{unknown} means nothing for model={run.config.model.name}: leave it out")


def _is_group(known: Any, value: Any) -> bool:
    return isinstance(known, dict) and bool(known) and isinstance(value, dict)


def _load_data(run: Run, settings: Settings) -> ImageData:
    """What is evaluated. Raises InputError where the model cannot take its images."""
    before, after = asdict(run.config.data) | {"root": None}, asdict(settings.data) | {"root": None}
    if before == after:
        return run.data
    data, model = build_data(settings.data, resolve_device(str(run.device))), run.model
    if data.image_shape != model.image_shape:
        shapes = ["x".join(map(str, shape)) for shape in (data.image_shape, model.image_shape)]
        raise InputError(f"data set {data.name} has images of {shapes[0]}, and the run's model takes {shapes[1]}")
    if model.classes and data.classes != model.classes:
        raise InputError(
            f"the run's model is conditional on {model.classes} classes, and data set {data.name} has {data.classes}"
        )
    if run.config.model.likelihood == "bernoulli" and not data.binary:
        raise InputError(f"the run's model needs pixels that are 0 or 1, and data set {data.name} has others")
    return data


def _record(
    run: Run,
    settings: Settings,
    data: ImageData,
    found: EvaluationResults,
    overrides: list[str],
    facts: tuple[int, float],
    seconds: float,
) -> dict[str, Any]:
    e, model = settings.evaluation, run.model
    label = _label(settings, data)
    record: dict[str, Any] = {
        "command": ["vaerun-eval", f"run={run.folder}", *overrides],
        "metrics": prefixed_metrics(found, e.split),
        "details": found.details,
        "protocol": {
            "data": data.name,
            "family": settings.model.family,
            "units": run.result["protocol"]["units"],
            "likelihood": run.result["protocol"].get("likelihood"),
            "conditional": settings.model.conditional,
            "seed": settings.seed,
            **data.protocol,
            **records.evaluation_protocol(e, data, model),
        },
        "timing": {"evaluation_seconds": round(seconds, 3)},
        "environment": records.environment(run.device),
    }
    if found.diverged:
        raise RunError(f"{e.split}/{found.diverged} is not finite for some images of {data.name}")
    step, epoch = facts
    log = RunLogger(run.folder, position=END, start_step=step, total_steps=step, images_per_step=1, show=False)
    path = run.folder / "per_example.npz"
    old = path.read_bytes() if path.exists() else None
    try:
        write_evaluation(run.folder, found, f"{label}/{e.split}", log, step, epoch, label)
        # Read anew under the lock: another evaluation may have ended since this one began.
        whole = records.read_result(run.folder) or run.result
        records.write_result(run.folder, whole | {"evaluations": whole.get("evaluations", {}) | {label: record}})
    except BaseException as error:
        if old is not None:  # no values per image without the record that says what they are
            with contextlib.suppress(OSError, RunError):
                write_atomically(path, old)
        if isinstance(error, OSError):
            raise RunError(f"cannot write into {run.folder}: {error}; make space and give the command again") from error
        raise
    finally:
        log.close()
    protocol = record["protocol"]
    head = (
        f"{run.result['model']} trained on {run.result['data']}, evaluated on {data.name}: mean over "
        f"{protocol['evaluated_images']} {e.split} images (± standard error over them), {protocol['units']}"
    )
    rows = described_metrics(found, protocol, e.split)
    text = "\n".join([*found.texts, head, *align_rows(rows), f"recorded in {run.folder} as {label}"])
    print(printable_lines(text))  # a stranger's record may hold control codes
    return record
