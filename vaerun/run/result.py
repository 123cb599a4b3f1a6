"""result.json and the table in the terminal."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from vaerun.config.schema import EvaluationSettings, Settings
from vaerun.data.dataset import ImageData
from vaerun.errors import InputError, RunError
from vaerun.models import AdversarialModel
from vaerun.report.listing import pixel_space
from vaerun.run.build import Model
from vaerun.run.evaluate.descriptions import align_rows, metric_rows
from vaerun.storage.atomic import write_atomically
from vaerun.storage.json_files import read_json, write_json
from vaerun.storage.run_dir import check_run_paths
from vaerun.text import format_fixed, printable, printable_lines

RESULT_FILE = "result.json"
HEADLINE_METRICS = ("log_likelihood", "elbo", "diversity", "classifier_frechet_distance")  # of each kind of model
JOB_LOG = "job.log"  # what a run that was started as a job of a sweep printed


def read_result(folder: Path, within: Path | None = None) -> dict[str, Any] | None:
    """The folder's result.json, or None where there is none.

    Raises InputError for one that cannot be read, or is a link that leads out of the folder `within`.
    """
    path = folder / RESULT_FILE
    try:
        record = read_json(path, root=within)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = printable(error, 200)
        raise InputError(f"{path} cannot be read ({why}): move it away, or choose another output_dir") from error
    kinds = {"fingerprint": str, "status": str, "metrics": dict, "protocol": dict}
    if not isinstance(record, dict) or any(not isinstance(record.get(k), kind) for k, kind in kinds.items()):
        raise InputError(f"{path} is no result of vaerun's: choose another output_dir")
    return record


def check_existing_run(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """What result.json says, if there is one.

    Raises InputError where the folder is somebody else's, or a run that is not finished could not write into it.
    """
    before = read_result(folder)
    if before is not None and before["fingerprint"] != fingerprint:
        raise InputError(
            f"{folder} holds a run of another configuration or other data: choose another output_dir, or "
            "trainer.resume=never for a folder of its own"
        )
    if (
        before is None
        and folder.exists()
        and any(not p.name.startswith(".") and p.name != JOB_LOG for p in folder.iterdir())
    ):
        raise InputError(f"{folder} is not empty and holds no run of vaerun's: choose another output_dir")
    if before is None or before["status"] != "ok":
        check_run_paths(folder)
    return before


def utc_now() -> str:
    """UTC, to the microsecond: two attempts at a run never have the same."""
    return datetime.now(UTC).isoformat()


def write_result(folder: Path, record: dict[str, Any]) -> None:
    """Write result.json whole."""
    write_json(folder / RESULT_FILE, record)


def write_config(folder: Path, plain: dict[str, Any], overrides: list[str], hydra: str | None) -> None:
    """`.hydra/` as Hydra writes it: config.yaml (all interpolations resolved), overrides.yaml, hydra.yaml.

    Raises RunError where they cannot be written.
    """
    target = folder / ".hydra"
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make {target}: {error.strerror or error}; run the same command again to resume"
        ) from error
    write_atomically(target / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode())
    write_atomically(target / "overrides.yaml", yaml.safe_dump(overrides, allow_unicode=True).encode())
    if hydra is not None:
        write_atomically(target / "hydra.yaml", hydra.encode())


def new_record(
    settings: Settings,
    data: ImageData,
    device: torch.device,
    fingerprint: str,
    overrides: list[str],
    started_from: dict[str, str] | None,
    model: Model,
) -> dict[str, Any]:
    """The record of a run that begins: everything but its results."""
    closed_form = settings.model.fit == "closed_form"
    return {
        "schema": 1,
        "status": "running",
        "started": utc_now(),
        "ended": None,
        "fingerprint": fingerprint,
        "command": ["vaerun", *overrides],
        "model": settings.model.name,
        "data": settings.data.name,
        "estimator": settings.estimator.name,
        "seed": settings.seed,
        "metrics": {},
        "details": {},
        "protocol": {
            "family": settings.model.family,
            "units": units(model),
            "likelihood": None if settings.model.family == "adversarial" else settings.model.likelihood,
            **data.protocol,
            "conditional": settings.model.conditional,
            "training_samples": settings.estimator.samples if settings.model.family == "likelihood" else None,
            **evaluation_protocol(settings.evaluation, data, model),
            "selection": "none: closed form" if closed_form else "last epoch",
            "started_from": started_from,
            "selected_epoch": None,
        },
        "timing": {},
        "environment": environment(device),
        "error": None,
    }


def keep_provenance(record: dict[str, Any], before: dict[str, Any]) -> None:
    """Take over what the run's record said of its beginning."""
    kept = {k: before["protocol"][k] for k in ("started_from", "selection_space") if k in before["protocol"]}
    record["protocol"] |= kept


def set_selection_space(record: dict[str, Any], name: str | None) -> None:
    """Note the classifier in whose features epochs are compared.

    Raises InputError where those so far were compared in another one's: the distances would not be comparable.
    """
    before = record["protocol"].get("selection_space")
    if before is not None and before != name:
        raise InputError(
            f"this run's epochs were compared in the features of {before}, and the cache has {name}: bring back the "
            "cache's folder `classifiers`, or start afresh with trainer.resume=never"
        )
    if name is not None:
        record["protocol"]["selection_space"] = name


def units(model: Model) -> str:
    """Of the numbers per image."""
    if isinstance(model, AdversarialModel):
        return "nats per image under N(G(z), s2 I) where it is a log-likelihood: a generator has none of its own"
    return "nats per image" if model.has_density else "squared error per image: no likelihood"


def evaluation_protocol(settings: EvaluationSettings, data: ImageData, model: Model) -> dict[str, Any]:
    """What was evaluated, and how: what must agree for two evaluations to be comparable."""
    images = len(getattr(data, settings.split))
    n = images if settings.images is None else min(settings.images, images)
    found: dict[str, Any] = {
        "importance_samples": settings.samples if model.has_density else None,
        "evaluated_split": settings.split,
        "evaluated_images": n,
    }
    if settings.ais or settings.bdmc:
        found["annealing"] = asdict(settings.annealing) | {"images": min(n, settings.annealing.images)}
        if isinstance(model, AdversarialModel) and model.variance is None:
            found["observation"] = asdict(settings.observation)
    if isinstance(model, AdversarialModel) or settings.quality or settings.inception_weights is not None:
        found["generated"] = asdict(settings.generated) | {"samples": min(n, settings.generated.samples)}
    if isinstance(model, AdversarialModel):
        found["diversity_threshold"] = settings.diversity
        found["categorical_codes"] = 0 if model.codes is None else len(model.codes.categorical)
    if settings.parzen:
        found["parzen_samples"] = settings.generated.samples
    if settings.gaps:
        found["gap"] = asdict(settings.gap) | {"images": min(n, settings.gap.images)}
    if settings.gradient_noise:
        found["noise"] = asdict(settings.noise)
    return found


def hparams_metrics(metrics: Mapping[str, float | None], split: str) -> list[str]:
    """Tags of the numbers that TensorBoard's HParams tab shows: a run's own, and the foremost of others."""
    own = [name for name, value in metrics.items() if value is not None and not name.endswith("_se")]
    return list(dict.fromkeys([*own, *(f"{split}/{name}" for name in HEADLINE_METRICS)]))


def hyperparameters(settings: Settings) -> dict[str, Any]:
    """What TensorBoard's HParams tab shows of a run's settings; None: it has no such setting."""
    return {
        "data": settings.data.name,
        "model": settings.model.name,
        "estimator": settings.estimator.name,
        "seed": settings.seed,
        "latent_dim": settings.model.latent_dim,
        "likelihood": settings.model.likelihood if settings.model.family == "likelihood" else "none",
        "epochs": settings.trainer.epochs,
        "max_steps": settings.trainer.max_steps,
        "batch_size": settings.trainer.batch_size,
        "learning_rate": settings.trainer.learning_rate,
        "inference.steps": (settings.model.inference or {}).get("steps"),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        **{p: metadata.version(p) for p in ("torch", "torchvision", "hydra-core", "numpy", "vaerun")},
    }


def format_table(record: dict[str, Any], folder: Path) -> str:
    """The final numbers, each with what it is. Raises InputError for a record that does not hold them."""
    try:
        return printable_lines(_format_table(record, folder))  # a stranger's record may hold control codes
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{folder / RESULT_FILE} is damaged ({why}): move it away, or choose another output_dir"
        ) from error


def _format_table(record: dict[str, Any], folder: Path) -> str:
    protocol, metrics = record["protocol"], record["metrics"]
    pixels = pixel_space(protocol)
    images, epoch = protocol["evaluated_images"], f"selected epoch {protocol['selected_epoch']:.4g}"
    split = protocol.get("evaluated_split", "test")
    if protocol["selection"].startswith("none"):
        epoch = "closed form"
    if protocol.get("family") == "adversarial":
        head = (
            f"{record['model']} on {record['data']} ({pixels} pixels): adversarial, against {images} {split} "
            f"images (± standard error over them where it is a mean), {epoch}"
        )
    elif protocol["importance_samples"] is None:
        head = (
            f"{record['model']} on {record['data']} ({pixels} pixels): no likelihood, a plain autoencoder; "
            f"means over {images} {split} images (± standard error over them), {epoch}"
        )
    else:
        head = (
            f"{record['model']} on {record['data']} ({pixels} pixels): nats per image, mean over {images} "
            f"{split} images (± standard error over them); {protocol['likelihood']} likelihood, {epoch}"
        )
    other = any(name in metrics for name in ("val/iwae", "val/renyi"))
    elbo_samples = f"mean over {protocol.get('training_samples')} samples" if other else "1 sample"
    validation, samples = f"{protocol['images']['validation']} images", f"K={protocol.get('training_samples')}"
    selected = {
        "val/elbo": f"validation ELBO at the selected epoch, {elbo_samples}, {validation}",
        "val/iwae": f"validation importance-weighted bound at the selected epoch, {samples}, {validation}",
        "val/renyi": f"validation Renyi bound at the selected epoch, {samples}, {validation}",
        "val/classifier_frechet_distance": "validation Frechet distance, classifier's features, selected epoch",
        "val/reconstruction": f"validation log p(x|z) at the encoder's z and the selected epoch, {validation}",
    }
    own = [
        (name, format_fixed(metrics[name], 2), text) for name, text in selected.items() if metrics.get(name) is not None
    ]
    return "\n".join([head, *align_rows(own + metric_rows(metrics, protocol, split)), f"recorded in {folder}"])
