"""The configuration's schema: every key with its type and what it is where nothing is said.

What a key means stands beside it in configs/; which values are allowed, in settings.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DataSettings:
    """The group `data`."""

    name: str = MISSING
    source: dict[str, Any] = field(default_factory=dict)
    root: str | None = None
    path: str | None = None
    image_size: Any = None
    channels: int = 3
    binarize: str = "none"
    dequantize: bool = False
    logit: bool = False
    validation: float = 0.1
    train_images: int | None = None


@dataclass
class CodeSettings:
    """`model.codes`: InfoGAN's, and the weight lambda of each kind's mutual information."""

    categorical: list[int] = field(default_factory=list)
    continuous: int = 0
    categorical_weight: float = 1.0
    continuous_weight: float = 1.0
    continuous_variance: float | None = 1.0


@dataclass
class ModelSettings:
    """The groups `network` and `model`.

    A model of the family `likelihood` has a decoder and an inference, one of the family `adversarial` a generator and a
    discriminator.
    """

    name: str = MISSING
    family: str = "likelihood"
    latent_dim: int = MISSING
    likelihood: str = MISSING
    fixed_variance: float | None = None
    conditional: bool = False
    conditional_prior: bool = False
    fit: str = "gradient"
    encoder: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    inference: dict[str, Any] | None = None
    generator: dict[str, Any] | None = None
    discriminator: dict[str, Any] | None = None
    codes: CodeSettings | None = None


@dataclass
class EstimatorSettings:
    """The group `estimator`."""

    name: str = MISSING
    function: dict[str, Any] = MISSING
    samples: int = 1
    alpha: float | None = None
    control_variate: str | None = None
    kl_weight: float | None = None
    kl_warmup_epochs: float | None = None
    free_bits: float | None = None
    discriminator_steps: int | None = None
    label_smoothing: float | None = None
    r1: float | None = None


@dataclass
class TrainerSettings:
    """The group `trainer`."""

    epochs: int = MISSING
    max_steps: int | None = None
    batch_size: int = MISSING
    learning_rate: float = MISSING
    variance_learning_rate: float | None = None
    discriminator_learning_rate: float | None = None
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    discriminator_betas: list[float] | None = None
    average: float | None = None
    winning_steps: int = 500
    schedule: str = "constant"
    clip_norm: float | None = None
    early_stopping: int | None = None
    device: str = "auto"
    resume: str = "auto"
    deterministic: bool = False
    log_every: int = 50
    checkpoint_seconds: float = 60.0
    processes: int = 1
    precision: str = "float32"
    compile: str = "auto"
    replicas: int = 1


@dataclass
class AnnealingSettings:
    """`evaluation.annealing`: of AIS and BDMC."""

    temperatures: int = 2500
    chains: int = 16
    leapfrog_steps: int = 2
    step_size: float = 0.1
    acceptance: float = 0.8
    adapt: bool = True
    images: int = 100


@dataclass
class GapSettings:
    """`evaluation.gap`: of the inference gaps."""

    samples: int = 8
    learning_rate: float = 0.01
    window: int = 50
    tolerance: float = 0.01
    patience: int = 2
    max_steps: int = 5000
    images: int = 100


@dataclass
class NoiseSettings:
    """`evaluation.noise`: of the gradient noise."""

    estimators: list[str] = field(default_factory=list)
    samples: int = 5
    draws: int = 200
    images: int = 100


@dataclass
class GeneratedSettings:
    """`evaluation.generated`: of what is measured on generated images."""

    samples: int = 10_000
    neighbours: int = 5


@dataclass
class ObservationSettings:
    """`evaluation.observation`: of a generator's pixel variance, chosen on validation images."""

    variances: list[float] = field(default_factory=lambda: [0.001, 0.003, 0.01, 0.03, 0.1])
    images: int = 20


@dataclass
class EvaluationSettings:
    """The group `evaluation`."""

    samples: int = 5000
    images: int | None = None
    split: str = "test"
    every: int = 1
    pictures: int = 10
    chunk: int | None = None
    latent: bool = True
    ais: bool = False
    bdmc: bool = False
    gaps: bool = False
    probe: bool = False
    gradient_noise: bool = False
    arrays: bool = False
    quality: bool = False
    parzen: bool = False
    inception_weights: str | None = None
    diversity: float = 0.5
    selection: str | None = None
    sets: dict[str, list[int]] = field(default_factory=dict)
    interpolation: list[Any] = field(default_factory=list)
    arithmetic: list[str] = field(default_factory=list)
    label: int = 0
    annealing: AnnealingSettings = field(default_factory=AnnealingSettings)
    gap: GapSettings = field(default_factory=GapSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    generated: GeneratedSettings = field(default_factory=GeneratedSettings)
    observation: ObservationSettings = field(default_factory=ObservationSettings)


@dataclass
class TableSettings:
    """`sweep.table`: the table that a sweep ends in."""

    rows: str = "model"
    columns: str | None = "model.inference.steps"
    metric: str | None = None
    published: str | None = None


@dataclass
class SweepSettings:
    """`sweep`: how the jobs of a sweep are run; it changes no result."""

    jobs: int | None = None
    jobs_per_gpu: int = 1
    together: int = 1
    job_minutes: float | None = None
    fail_fast: bool = False
    table: TableSettings = field(default_factory=TableSettings)


@dataclass
class Settings:
    """A whole run."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    seed: int = 0
    output_dir: str | None = None
