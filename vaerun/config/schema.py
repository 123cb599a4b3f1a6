"""Schema of the configuration: every key with its type, default and allowed values.

The keys are documented in configs/. validation.py checks the values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Allowed:
    """Allowed values of a key, or of the elements of a list. None: no restriction.

    Attributes:
        ge, gt, le, lt: bounds on a number, as in pydantic: >=, >, <=, <.
        choices: all allowed values.
        pattern: regular expression that the whole string must match, and its description.
        length: length of the list.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str | None, ...] | None = None
    pattern: tuple[str, str] | None = None
    length: int | None = None


def only(**limits: Any) -> dict[str, Allowed]:
    """Metadata of a dataclass field, from the attributes of Allowed."""
    return {"allowed": Allowed(**limits)}


def option(default: Any = MISSING, **limits: Any) -> Any:
    """Define a key by its default and the attributes of Allowed."""
    return field(default=default, metadata=only(**limits))


BILLION = 10**9
"""Limit on counts: a billion of anything takes weeks or exhausts the memory.

Numbers of images, batch sizes and chunks have no such limit: the data set bounds them.
"""
NAME = (r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", "up to 100 letters, digits, '_', '-' and '.' (not first)")
"""Pattern of names that become part of a path."""


@dataclass
class DataSettings:
    """The group `data`."""

    name: str = option(pattern=NAME)
    source: dict[str, Any] = field(default_factory=dict)
    root: str | None = None
    path: str | None = None
    image_size: Any = None
    channels: int | None = 3
    image_column: str | None = None
    label_column: str | None = None
    binarize: str = option("none", choices=("none", "dynamic", "fixed"))
    dequantize: bool = False
    logit: bool = False
    validation: float = option(0.1, ge=0)
    train_images: int | None = None


@dataclass
class CodeSettings:
    """`model.codes`: latent codes of InfoGAN, with the weights lambda of their mutual information."""

    categorical: list[int] = field(default_factory=list)
    continuous: int = 0
    categorical_weight: float = 1.0
    continuous_weight: float = 1.0
    continuous_variance: float | None = 1.0


@dataclass
class ModelSettings:
    """The groups `network` and `model`.

    A model of the family `likelihood` has a decoder and an inference method; one of the family `adversarial` has a
    generator and a discriminator.
    """

    name: str = option(pattern=NAME)
    family: str = option("likelihood", choices=("likelihood", "adversarial"))
    latent_dim: int = option(ge=1, le=BILLION)
    likelihood: str = option(choices=("gaussian", "bernoulli"))
    fixed_variance: float | None = option(None, ge=1e-12, le=1e12)  # densities stay finite in single precision
    conditional: bool = False
    conditional_prior: bool = False
    fit: str = option("gradient", choices=("gradient", "closed_form"))
    encoder: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    inference: dict[str, Any] | None = None
    generator: dict[str, Any] | None = None
    discriminator: dict[str, Any] | None = None
    codes: CodeSettings | None = None


@dataclass
class EstimatorSettings:
    """The group `estimator`."""

    name: str = option(pattern=NAME)
    function: dict[str, Any] = MISSING
    samples: int = option(1, ge=1, le=BILLION)
    alpha: float | None = None
    control_variate: str | None = None
    kl_weight: float | None = option(None, ge=0)
    kl_warmup_epochs: float | None = option(None, ge=0, le=BILLION)
    free_bits: float | None = option(None, ge=0)
    discriminator_steps: int | None = option(None, ge=1, le=10**6)
    label_smoothing: float | None = option(None, ge=0)
    r1: float | None = option(None, ge=0)


@dataclass
class TrainerSettings:
    """The group `trainer`."""

    epochs: int = option(ge=1, le=BILLION)
    max_steps: int | None = option(None, ge=1)
    batch_size: int = option(ge=1)
    learning_rate: float = option(gt=0)
    variance_learning_rate: float | None = option(None, ge=0)
    discriminator_learning_rate: float | None = option(None, gt=0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999], metadata=only(ge=0, lt=1, length=2))
    discriminator_betas: list[float] | None = field(default=None, metadata=only(ge=0, lt=1, length=2))
    average: float | None = option(None, ge=0, lt=1)
    winning_steps: int = option(500, ge=1)
    schedule: str = option("constant", choices=("constant", "cosine", "step", "burda"))
    clip_norm: float | None = option(None, gt=0)
    early_stopping: int | None = option(None, ge=1)
    device: str = "auto"
    resume: str = "auto"
    deterministic: bool = False
    log_every: int = option(50, ge=1)
    checkpoint_seconds: float = option(60.0, ge=0, le=BILLION)
    processes: int = option(1, ge=1, le=1000)
    precision: str = option("float32", choices=("float32", "tf32", "bf16"))
    compile: str = option("auto", choices=("auto", "none", "graph"))
    replicas: int = option(1, ge=1, le=1000)


@dataclass
class AnnealingSettings:
    """`evaluation.annealing`: settings of AIS and BDMC."""

    temperatures: int = option(2500, le=10**7)
    chains: int = option(16, le=10**7)
    leapfrog_steps: int = option(2, le=10**6)
    step_size: float = 0.1
    acceptance: float = 0.8
    adapt: bool = True
    images: int = option(100, ge=1)


@dataclass
class EstimateSettings:
    """`evaluation.estimate`: settings of the estimates of log p(x) against K."""

    samples: int = option(20_000, le=BILLION)
    repeats: int = option(10, le=10**6)
    images: int = option(10, ge=1)


@dataclass
class AmisSettings:
    """`evaluation.amis`: settings of adaptive importance sampling; `evaluation.amis=true` or `=false` set `enabled`."""

    enabled: bool | None = None
    samples: int = option(2000, ge=1, le=10**7)
    temperatures: int = option(100, ge=1, le=10**6)
    starts: int = option(8, ge=1, le=10**6)
    max_starts: int = option(128, ge=1, le=10**6)
    rounds: int = option(2, ge=1, le=1000)
    max_rounds: int = option(12, ge=1, le=1000)
    round_samples: int = option(500, ge=1, le=10**6)
    images: int | None = option(1000, ge=1)
    simulated: int = option(50, ge=0, le=BILLION)
    fallback: str | None = option("ais", choices=(None, "ais"))
    fallback_images: int = option(20, ge=1)


@dataclass
class GapSettings:
    """`evaluation.gap`: settings of the inference gaps."""

    samples: int = option(8, le=10**6)
    learning_rate: float = 0.01
    window: int = 50
    tolerance: float = 0.01
    patience: int = 2
    max_steps: int = option(5000, le=BILLION)
    images: int = option(100, ge=1)


@dataclass
class NoiseSettings:
    """`evaluation.noise`: settings of the gradient noise."""

    estimators: list[str] = field(default_factory=list)
    samples: int = option(5, ge=1, le=BILLION)
    draws: int = option(200, ge=3, le=BILLION)
    images: int = option(100, ge=1)


@dataclass
class GeneratedSettings:
    """`evaluation.generated`: settings of metrics on generated images."""

    samples: int = option(10_000, ge=2, le=BILLION)
    neighbours: int = option(5, ge=1)


@dataclass
class ObservationSettings:
    """`evaluation.observation`: settings for choosing a generator's pixel variance on validation images."""

    variances: list[float] = field(default_factory=lambda: [0.001, 0.003, 0.01, 0.03, 0.1], metadata=only(gt=0))
    images: int = option(20, ge=1)


@dataclass
class EvaluationSettings:
    """The group `evaluation`."""

    samples: int = option(5000, ge=1, le=BILLION)
    images: int | None = option(None, ge=1)
    split: str = option("test", choices=("test", "validation", "train"))
    every: int = option(1, ge=1)
    pictures: int = option(10, ge=0)
    chunk: int | None = option(None, ge=1)
    latent: bool = True
    ais: bool = False
    bdmc: bool = False
    estimates: bool = False
    gaps: bool = False
    probe: bool = False
    gradient_noise: bool = False
    arrays: bool = False
    quality: bool = False
    parzen: bool = False
    inception_weights: str | None = None
    diversity: float = option(0.5, ge=0)
    selection: str | None = option(None, choices=(None, "classifier_frechet_distance"))
    sets: dict[str, list[int]] = field(default_factory=dict)
    interpolation: list[Any] = field(default_factory=list)
    arithmetic: list[str] = field(default_factory=list)
    label: Any = 0  # the name or the index of a class
    amis: AmisSettings = field(default_factory=AmisSettings)
    annealing: AnnealingSettings = field(default_factory=AnnealingSettings)
    estimate: EstimateSettings = field(default_factory=EstimateSettings)
    gap: GapSettings = field(default_factory=GapSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    generated: GeneratedSettings = field(default_factory=GeneratedSettings)
    observation: ObservationSettings = field(default_factory=ObservationSettings)


@dataclass
class TableSettings:
    """`sweep.table`: the table written at the end of a sweep."""

    rows: str = "model"
    columns: str | None = "model.inference.steps"
    metric: str | None = None
    published: str | None = None


@dataclass
class SweepSettings:
    """`sweep`: how the jobs of a sweep are run; does not affect results."""

    jobs: int | None = option(None, ge=1, le=10**5)
    jobs_per_gpu: int = option(1, ge=1, le=10**5)
    together: int = option(1, ge=1, le=10**5)
    job_minutes: float | None = option(None, gt=0, le=10**6)
    fail_fast: bool = False
    table: TableSettings = field(default_factory=TableSettings)


@dataclass
class Settings:
    """The complete settings of a run."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    seed: int = option(0, ge=0)
    output_dir: str | None = None
