"""The configuration checked, and what identifies a run. No torch here: `--cfg` stays quick."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from vaerun.errors import InputError
from vaerun.files import flat
from vaerun.foreign import is_unicode, printable
from vaerun.schema import (
    AnnealingSettings,
    CodeSettings,
    DataSettings,
    EstimatorSettings,
    EvaluationSettings,
    GapSettings,
    GeneratedSettings,
    ModelSettings,
    NoiseSettings,
    ObservationSettings,
    Settings,
    SweepSettings,
    TableSettings,
    TrainerSettings,
)

__all__ = [
    "NUMERICS",
    "AnnealingSettings",
    "CodeSettings",
    "DataSettings",
    "EstimatorSettings",
    "EvaluationSettings",
    "GapSettings",
    "GeneratedSettings",
    "ModelSettings",
    "NoiseSettings",
    "ObservationSettings",
    "Settings",
    "SweepSettings",
    "TableSettings",
    "TrainerSettings",
    "check",
    "fingerprint",
    "identity",
    "is_incidental",
    "keys",
    "missing",
    "nearest",
    "short_name",
    "value_of",
]

NUMERICS = 1  # raised whenever the same settings, a default among them, give other numbers

# Settings that cannot change a result: left out of the fingerprint.
_NOT_IDENTITY = (
    "output_dir",
    "data.root",
    "trainer.device",
    "trainer.log_every",
    "trainer.checkpoint_seconds",
    "trainer.processes",
    "trainer.compile",
    "trainer.replicas",
    "evaluation.chunk",
    "evaluation.pictures",
)

# Smallest allowed value (None: any) and whether it itself is allowed.
_LEAST: dict[str, tuple[float, bool]] = {
    "data.validation": (0, True),
    "model.latent_dim": (1, True),
    "estimator.samples": (1, True),
    "estimator.kl_weight": (0, True),
    "estimator.kl_warmup_epochs": (0, True),
    "estimator.free_bits": (0, True),
    "estimator.discriminator_steps": (1, True),
    "estimator.label_smoothing": (0, True),
    "estimator.r1": (0, True),
    "trainer.epochs": (1, True),
    "trainer.max_steps": (1, True),
    "trainer.batch_size": (1, True),
    "trainer.learning_rate": (0, False),
    "trainer.variance_learning_rate": (0, True),
    "trainer.discriminator_learning_rate": (0, False),
    "trainer.average": (0, True),
    "trainer.winning_steps": (1, True),
    "trainer.clip_norm": (0, False),
    "trainer.early_stopping": (1, True),
    "trainer.log_every": (1, True),
    "trainer.checkpoint_seconds": (0, True),
    "trainer.processes": (1, True),
    "trainer.replicas": (1, True),
    "sweep.jobs": (1, True),
    "sweep.jobs_per_gpu": (1, True),
    "sweep.together": (1, True),
    "sweep.job_minutes": (0, False),
    "evaluation.samples": (1, True),
    "evaluation.images": (1, True),
    "evaluation.every": (1, True),
    "evaluation.pictures": (0, True),
    "evaluation.chunk": (1, True),
    "evaluation.diversity": (0, True),
    "evaluation.label": (0, True),
    "evaluation.generated.samples": (2, True),
    "evaluation.generated.neighbours": (1, True),
    "evaluation.observation.images": (1, True),
    "evaluation.annealing.images": (1, True),
    "evaluation.gap.images": (1, True),
    "evaluation.noise.samples": (1, True),
    "evaluation.noise.draws": (3, True),
    "evaluation.noise.images": (1, True),
}

# Between these, densities of pixels and their gradients stay finite in single precision.
_VARIANCE = (1e-12, 1e12)

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "model.family": ("likelihood", "adversarial"),
    "model.likelihood": ("gaussian", "bernoulli"),
    "model.fit": ("gradient", "closed_form"),
    "trainer.schedule": ("constant", "cosine", "step", "burda"),
    "trainer.precision": ("float32", "tf32", "bf16"),
    "trainer.compile": ("auto", "none", "graph"),
    "data.binarize": ("none", "dynamic", "fixed"),
    "evaluation.split": ("test", "validation", "train"),
    "evaluation.selection": (None, "classifier_frechet_distance"),
}


def keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a configuration."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield f"{prefix}{key}"
            yield from keys(value, f"{prefix}{key}.")


def nearest(name: str, names: list[str]) -> str:
    """' Did you mean X?' for the closest of the names, else ''."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:  # the right key under the wrong parent, or none at all
        leaves = {n.rpartition(".")[2]: n for n in names}
        leaf = difflib.get_close_matches(name.rpartition(".")[2], list(leaves), n=1, cutoff=0.75)
        close = [leaves[leaf[0]]] if leaf else []
    return f" Did you mean {close[0]}?" if close else ""


def check(cfg: DictConfig) -> Settings:
    """The composed configuration as typed settings. Raises InputError in one line for what does not fit."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
        merged = OmegaConf.merge(OmegaConf.structured(Settings), plain)
        absent = sorted(OmegaConf.missing_keys(merged))
        if absent:
            raise InputError(f"{absent[0]} must be given: {absent[0]}=VALUE")
        settings = OmegaConf.to_object(merged)
    except InterpolationToMissingValueError as error:
        raise InputError(missing(str(error))) from error
    except InterpolationKeyError as error:
        raise InputError(f"configuration: {str(error).splitlines()[0]}") from error
    except ConfigKeyError as error:
        known = list(keys(OmegaConf.to_container(OmegaConf.structured(Settings))))
        raise InputError(f"unknown key '{error.full_key}'.{nearest(str(error.full_key), known)}") from error
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0]
        if "is not a ListConfig" in text:
            text = "write a list, such as [a,b]"
        raise InputError(f"{error.full_key}: {text}") from error
    assert isinstance(settings, Settings)
    _check_values(settings)
    return settings


def missing(text: str) -> str:
    """The line for a value that must be given and was not, from OmegaConf's text."""
    found = re.search(r"[Mm]issing mandatory value: ([\w.]+)", text)
    return f"{found.group(1)} must be given: {found.group(1)}=VALUE" if found else " ".join(text.split())


def _check_values(settings: Settings) -> None:
    for key, value in flat(asdict(settings)):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) >= 2**63 and key != "seed":  # of which there is more to say
                raise InputError(f"{key} must be a number between -2^63 and 2^63, got {printable(number, 30)}")
            if isinstance(number, str) and not is_unicode(number):
                raise InputError(f"{key} holds bytes that are no text in utf-8: {printable(number, 100)}; rename it")
    for key, (least, itself) in _LEAST.items():
        value = value_of(settings, key)
        if value is not None and not math.isfinite(value):
            raise InputError(f"{key} must be a finite number, got {value}")
        if value is not None and not (value >= least if itself else value > least):
            raise InputError(f"{key} must be {'at least' if itself else 'above'} {least}, got {value:.15g}")
    variance, (least, most) = settings.model.fixed_variance, _VARIANCE
    if variance is not None and not least <= variance <= most:  # NaN is not, either
        raise InputError(
            f"model.fixed_variance must be between {least:g} and {most:g}, beyond which single precision overflows; "
            f"got {variance}"
        )
    for key, choices in _CHOICES.items():
        value = value_of(settings, key)
        if value not in choices:
            known = ["null" if choice is None else choice for choice in choices]
            raise InputError(f"{key}={value}: choose one of {', '.join(known)}.{nearest(str(value), known)}")
    for group in (settings.data, settings.model, settings.estimator):
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", group.name):  # folders and files are named after them
            name = printable(group.name, 100)
            raise InputError(f"name '{name}': use up to 100 letters, digits, '_', '-' and '.' (not first) only")
    for key in ("trainer.betas", "trainer.discriminator_betas"):
        betas = value_of(settings, key)
        if betas is not None and not (len(betas) == 2 and all(0 <= b < 1 for b in betas)):
            raise InputError(f"{key} must be two numbers of at least 0 and below 1, such as [0.5,0.999], got {betas}")
    if settings.trainer.average is not None and not settings.trainer.average < 1:
        raise InputError(f"trainer.average must be below 1, got {settings.trainer.average:.15g}")
    if settings.trainer.replicas > 1 and settings.trainer.processes > 1:
        raise InputError("trainer.replicas and trainer.processes do not go together: set one of them to 1")
    if not settings.evaluation.observation.variances or min(settings.evaluation.observation.variances) <= 0:
        raise InputError("evaluation.observation.variances must list variances above 0, such as [0.01,0.03,0.1]")
    if not 0 <= settings.seed < 2**63:
        raise InputError(f"seed must be between 0 and 2^63 - 1, got {settings.seed}")


def value_of(settings: Settings, key: str) -> Any:
    """The value of a dotted key."""
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    return found


def is_incidental(key: str) -> bool:
    """Whether this setting cannot change a result."""
    return key in _NOT_IDENTITY or key.startswith("sweep.")


@cache
def _defaults() -> dict[str, Any]:
    return dict(flat(OmegaConf.to_container(OmegaConf.structured(Settings))))


def identity(plain: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that can change a result.

    What has the schema's default is left out, so that a key which is added later (its default being what was done
    before) leaves older runs what they are. A default that changes therefore needs another NUMERICS.
    """
    defaults = _defaults()
    kept = {k: v for k, v in flat(plain) if not is_incidental(k) and not (k in defaults and v == defaults[k])}
    if kept.get("trainer.resume") in ("auto", "never"):
        del kept["trainer.resume"]
    return kept


def fingerprint(plain: dict[str, Any], data_sha256: str) -> str:
    """What makes two runs the same run: settings, data and the version of the numerics; 64 hex digits."""
    kept = {k: v for k, v in identity(plain).items() if k not in ("data.path", "data.source.path")}
    record = {"settings": kept, "data_sha256": data_sha256, "numerics": NUMERICS}
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()


def short_name(plain: dict[str, Any]) -> str:
    """DATA/MODEL/ESTIMATOR-seedN-HASH: where the run of this configuration lives by default."""
    digest = hashlib.sha256(json.dumps(identity(plain), sort_keys=True, default=str).encode()).hexdigest()[:10]
    groups = [plain.get(group) for group in ("data", "model", "estimator")]
    parts = [str(group.get("name") if isinstance(group, dict) else group) for group in groups]
    data, model, estimator = ("".join(c if c.isalnum() or c in "-_." else "_" for c in p) for p in parts)
    return f"{data}/{model}/{estimator}-seed{plain.get('seed')}-{digest}"
