"""Which values a setting may have: kinds, ranges, choices. No torch here: `--cfg` stays quick."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from vaerun.config.schema import Settings
from vaerun.errors import InputError
from vaerun.storage.plain_values import flatten
from vaerun.text import did_you_mean, is_unicode, printable

# Smallest allowed value (None: any) and whether it itself is allowed.
LEAST: dict[str, tuple[float, bool]] = {
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

# Largest allowed value: what is computed from it must fit its kind of number, or end. A billion of anything takes
# weeks, or more memory than there is; a trillion is a slip of the pen. What the data set bounds (images, batch sizes,
# chunks) is not bounded here.
MANY = 10**9
MOST: dict[str, float] = {
    "model.latent_dim": MANY,
    "estimator.samples": MANY,
    "evaluation.samples": MANY,
    "evaluation.generated.samples": MANY,
    "evaluation.annealing.temperatures": 10**7,
    "evaluation.annealing.chains": 10**7,
    "evaluation.annealing.leapfrog_steps": 10**6,
    "evaluation.gap.samples": 10**6,
    "evaluation.gap.max_steps": MANY,
    "evaluation.noise.samples": MANY,
    "evaluation.noise.draws": MANY,
    "sweep.jobs": 10**5,
    "sweep.jobs_per_gpu": 10**5,
    "sweep.together": 10**5,
    "estimator.kl_warmup_epochs": 1e9,
    "estimator.discriminator_steps": 10**6,
    "trainer.epochs": MANY,
    "trainer.checkpoint_seconds": 1e9,
    "trainer.replicas": 1000,
    "trainer.processes": 1000,
    "sweep.job_minutes": 1e6,
}
LARGEST = 3e38  # of all other numbers that are not whole: single precision ends at 3.4e38

# Between these, densities of pixels and their gradients stay finite in single precision.
VARIANCE = (1e-12, 1e12)

CHOICES: dict[str, tuple[str | None, ...]] = {
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


def value_of(settings: Settings, key: str) -> Any:
    """The value of a dotted key."""
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    return found


_ELEMENTS: dict[Any, tuple[str, type | tuple[type, ...]]] = {
    str: ("words, such as [a,b]", str),
    int: ("whole numbers, such as [1,2]", int),
    float: ("numbers, such as [0.1,0.2]", (int, float)),
}


def _check_kinds(settings: Any, prefix: str = "") -> None:
    """Raises InputError for a list within a list: OmegaConf looks at the kinds of plain elements only."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        key, value = f"{prefix}{field.name}", getattr(settings, field.name)
        if is_dataclass(value):
            _check_kinds(value, f"{key}.")
        hint = hints[field.name]
        kinds = [get_args(h)[0] for h in (hint, *get_args(hint)) if get_origin(h) is list]
        if not isinstance(value, list | tuple) or not kinds or kinds[0] not in _ELEMENTS:
            continue
        what, types = _ELEMENTS[kinds[0]]
        if any(not isinstance(element, types) or isinstance(element, bool) for element in value):
            raise InputError(f"{key} must be a list of {what}, got {printable(value, 100)}")


def _check_sizes(settings: Settings) -> None:
    """Raises InputError for numbers beyond what tensors hold, and text that no file takes."""
    for key, value in flatten(asdict(settings)):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) >= 2**63 and key != "seed":  # of which there is more to say
                raise InputError(f"{key} must be a number between -2^63 and 2^63, got {printable(number, 30)}")
            if isinstance(number, str) and not is_unicode(number):
                raise InputError(f"{key} holds bytes that are no text in utf-8: {printable(number, 100)}; rename it")
            if isinstance(number, float) and LARGEST < abs(number) < math.inf and key != "model.fixed_variance":
                raise InputError(f"{key} must be between -{LARGEST:g} and {LARGEST:g}, got {number:g}")


def check_values(settings: Settings) -> None:
    """Raises InputError for a value that its setting cannot have."""
    _check_kinds(settings)
    _check_sizes(settings)
    for key, (least, itself) in LEAST.items():
        value = value_of(settings, key)
        if value is not None and not math.isfinite(value):
            raise InputError(f"{key} must be a finite number, got {value}")
        if value is not None and not (value >= least if itself else value > least):
            raise InputError(f"{key} must be {'at least' if itself else 'above'} {least}, got {value:.15g}")
    for key, most in MOST.items():
        value = value_of(settings, key)
        if value is not None and value > most:
            raise InputError(f"{key} must be at most {most:.15g}, got {value:.15g}")
    variance, (least, most) = settings.model.fixed_variance, VARIANCE
    if variance is not None and not least <= variance <= most:  # NaN is not, either
        raise InputError(
            f"model.fixed_variance must be between {least:g} and {most:g}, beyond which single precision overflows; "
            f"got {variance}"
        )
    for key, choices in CHOICES.items():
        value = value_of(settings, key)
        if value not in choices:
            known = ["null" if choice is None else choice for choice in choices]
            raise InputError(f"{key}={value}: choose one of {', '.join(known)}.{did_you_mean(str(value), known)}")
    for key, group in (("data", settings.data), ("model", settings.model), ("estimator", settings.estimator)):
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", group.name):  # folders and files are named after them
            name = printable(group.name, 100)
            raise InputError(f"{key}.name '{name}': use up to 100 letters, digits, '_', '-' and '.' (not first) only")
    for key in ("trainer.betas", "trainer.discriminator_betas"):
        betas = value_of(settings, key)
        if betas is not None and not (len(betas) == 2 and all(0 <= b < 1 for b in betas)):
            raise InputError(f"{key} must be two numbers of at least 0 and below 1, such as [0.5,0.999], got {betas}")
    if settings.trainer.average is not None and not settings.trainer.average < 1:
        raise InputError(f"trainer.average must be below 1, got {settings.trainer.average:.15g}")
    if settings.trainer.replicas > 1 and settings.trainer.processes > 1:
        raise InputError("trainer.replicas and trainer.processes do not go together: set one of them to 1")
    variances = settings.evaluation.observation.variances
    if not variances or not all(0 < v < math.inf for v in variances):
        raise InputError("evaluation.observation.variances must list finite variances above 0, such as [0.01,0.03,0.1]")
    if not 0 <= settings.seed < 2**63:
        raise InputError(f"seed must be between 0 and 2^63 - 1, got {settings.seed}")
