"""result.json: its contents, reading and writing, and the table of results for the terminal."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from vaerun.config.schema import EvaluationSettings, Settings
from vaerun.config.settings import absolute_data_paths
from vaerun.data.dataset import ImageData
from vaerun.data.description import describe_data
from vaerun.errors import InputError, RunError
from vaerun.evaluation.adaptive.amis import MAX_LATENT_DIM
from vaerun.models import AdversarialModel
from vaerun.report.listing import pixel_space
from vaerun.run.build import Model
from vaerun.run.evaluate.descriptions import align_rows, metric_rows
from vaerun.run.other_run import other_run
from vaerun.run.preflight import uses_amis, uses_observation_model
from vaerun.storage.atomic import write_atomically
from vaerun.storage.json_files import read_json, write_json
from vaerun.storage.run_dir import check_run_paths
from vaerun.text import format_fixed, printable, printable_lines

RESULT_FILE = "result.json"
JOB_LOG = "job.log"  # output of a run that was launched as a job of a sweep
HYDRA_LOG = "vaerun.log"  # of hydra/job_logging=default, which Hydra opens before the run begins


def read_result(folder: Path, within: Path | None = None) -> dict[str, Any] | None:
    """Read the folder's result.json; None if there is none.

    Raises InputError if it cannot be read, or is a link that points outside the folder `within`.
    """
    path = folder / RESULT_FILE
    try:
        record = read_json(path, root=within)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = printable(error, 200)
        raise InputError(f"{path} cannot be read ({reason}): move it away, or choose another output_dir") from error
    types = {"fingerprint": str, "status": str, "metrics": dict, "protocol": dict}
    if not isinstance(record, dict) or any(not isinstance(record.get(k), expected) for k, expected in types.items()):
        raise InputError(f"{path} is not a result of vaerun: choose another output_dir")
    return record


def check_existing_run(
    folder: Path, fingerprint: str, settings: Settings, overrides: list[str]
) -> dict[str, Any] | None:
    """Return the record of an earlier attempt at this run, or None.

    Arguments:
        folder: the run directory.
        fingerprint: of the run.
        settings, overrides: of the run, to say how another run in the folder differs.

    Raises InputError if the folder contains anything else, or is not writable although the run is unfinished.
    """
    record = read_result(folder)
    if record is not None and record["fingerprint"] != fingerprint:
        raise InputError(other_run(folder, record, settings, overrides))
    if (
        record is None
        and folder.exists()
        and any(not p.name.startswith(".") and p.name not in (JOB_LOG, HYDRA_LOG) for p in folder.iterdir())
    ):
        raise InputError(f"{folder} is not empty and holds no vaerun run: choose another output_dir")
    if record is None or record["status"] != "ok":
        check_run_paths(folder)
    return record


def utc_now() -> str:
    """The current time in UTC, to the microsecond so that it identifies an attempt at a run."""
    return datetime.now(UTC).isoformat()


def write_result(folder: Path, record: dict[str, Any]) -> None:
    """Write result.json atomically."""
    write_json(folder / RESULT_FILE, record)


def write_config(folder: Path, config: dict[str, Any], overrides: list[str], hydra: str | None) -> None:
    """Write `.hydra/` as Hydra does, in config.yaml with interpolations resolved and absolute paths of the data.

    Raises RunError if it cannot be written.
    """
    target = folder / ".hydra"
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot create {target}: {error.strerror or error}; run the same command again to resume"
        ) from error
    config = absolute_data_paths(config)
    write_atomically(target / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
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
    """Create the record of a starting run, without results."""
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
        "dataset": describe_data(data),
        "timing": {},
        "environment": environment(device),
        "error": None,
    }


def keep_provenance(record: dict[str, Any], previous: dict[str, Any]) -> None:
    """Copy the initial checkpoint and the selection space from the record of an earlier attempt."""
    protocol = previous["protocol"]
    record["protocol"] |= {k: protocol[k] for k in ("started_from", "selection_space") if k in protocol}


def set_selection_space(record: dict[str, Any], name: str | None) -> None:
    """Record the classifier whose feature space is used to select the best epoch.

    Raises InputError if an earlier attempt used a different one, since the distances would not be comparable.
    """
    previous = record["protocol"].get("selection_space")
    if previous is not None and previous != name:
        raise InputError(
            f"this run's epochs were compared in the features of {previous}, and the cache has {name}: restore the "
            "cache's folder `classifiers`, or start a new run with trainer.resume=never"
        )
    if name is not None:
        record["protocol"]["selection_space"] = name


def units(model: Model) -> str:
    """Unit of the per-image values."""
    if isinstance(model, AdversarialModel):
        return "nats per image under N(G(z), s2 I) where it is a log-likelihood: a generator has none of its own"
    return "nats per image" if model.has_density else "squared error per image: no likelihood"


def evaluation_protocol(settings: EvaluationSettings, data: ImageData, model: Model) -> dict[str, Any]:
    """Describe what was evaluated and how; evaluations with equal protocols are comparable."""
    images = len(getattr(data, settings.split))
    n = images if settings.images is None else min(settings.images, images)
    protocol: dict[str, Any] = {
        "importance_samples": settings.samples if model.has_density else None,
        "evaluated_split": settings.split,
        "evaluated_images": n,
    }
    if uses_amis(settings, model):
        protocol["amis"] = asdict(settings.amis) | {
            "images": min(n, settings.amis.images or n),
            "simulated": min(n, settings.amis.simulated),
        }
        del protocol["amis"]["enabled"]
        if settings.amis.fallback is not None:
            protocol["amis"]["annealing"] = {k: v for k, v in asdict(settings.annealing).items() if k != "images"}
    if settings.ais or settings.bdmc:
        protocol["annealing"] = asdict(settings.annealing) | {"images": min(n, settings.annealing.images)}
    if isinstance(model, AdversarialModel) and model.variance is None and uses_observation_model(settings, model):
        protocol["observation"] = asdict(settings.observation)
    if isinstance(model, AdversarialModel) or settings.quality or settings.inception_weights is not None:
        protocol["generated"] = asdict(settings.generated) | {"samples": min(n, settings.generated.samples)}
    if isinstance(model, AdversarialModel):
        protocol["diversity_threshold"] = settings.diversity
        protocol["categorical_codes"] = 0 if model.codes is None else len(model.codes.categorical)
    if settings.parzen:
        protocol["parzen_samples"] = settings.generated.samples
    if settings.estimates:
        protocol["estimate"] = asdict(settings.estimate) | {"images": min(n, settings.estimate.images)}
    if settings.gaps:
        images = min(n, settings.gap.images)
        amis = protocol.get("amis", {}).get("images", 0) >= images
        source = "adaptive importance sampling" if amis else "importance sampling"
        starts = "q, mode" if model.latent_dim <= MAX_LATENT_DIM else "q"
        protocol["gap"] = asdict(settings.gap) | {"images": images, "log_likelihood": source, "starts": starts}
    if settings.gradient_noise:
        protocol["noise"] = asdict(settings.noise)
    return protocol


def environment(device: torch.device) -> dict[str, Any]:
    """Software versions and hardware of the run."""
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
    """Format the final results with their descriptions. Raises InputError for a record without results."""
    try:
        return printable_lines(_format_table(record, folder))  # an untrusted record may contain control codes
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{folder / RESULT_FILE} is damaged ({reason}): move it away, or choose another output_dir"
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
    multi_sample = any(name in metrics for name in ("val/iwae", "val/renyi"))  # trained on a multi-sample bound
    elbo_samples = f"mean over {protocol.get('training_samples')} samples" if multi_sample else "1 sample"
    validation, samples = f"{protocol['images']['validation']} images", f"K={protocol.get('training_samples')}"
    selected = {
        "val/elbo": f"validation ELBO at the selected epoch, {elbo_samples}, {validation}",
        "val/iwae": f"validation importance-weighted bound at the selected epoch, {samples}, {validation}",
        "val/renyi": f"validation Renyi bound at the selected epoch, {samples}, {validation}",
        "val/classifier_frechet_distance": "validation Frechet distance, classifier's features, selected epoch",
        "val/reconstruction": f"validation log p(x|z) at the encoder's z and the selected epoch, {validation}",
    }
    selection_rows = [
        (name, format_fixed(metrics[name], 2), text) for name, text in selected.items() if metrics.get(name) is not None
    ]
    return "\n".join(
        [head, *align_rows(selection_rows + metric_rows(metrics, protocol, split)), f"recorded in {folder}"]
    )
