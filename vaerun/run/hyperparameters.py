"""What tells runs apart in TensorBoard's HParams tab."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vaerun.config.identity import identity
from vaerun.config.schema import Settings
from vaerun.incidental import is_incidental
from vaerun.report.runs import NETWORKS, network_of
from vaerun.storage.plain_values import flatten

HYPERPARAMETERS = {
    "data": "data.name", "model": "model.name", "estimator": "estimator.name", "seed": "seed",
    "latent_dim": "model.latent_dim", "likelihood": "model.likelihood", "inference.steps": "model.inference.steps",
    "epochs": "trainer.epochs", "max_steps": "trainer.max_steps", "batch_size": "trainer.batch_size",
    "learning_rate": "trainer.learning_rate",
}  # fmt: skip
"""Name in TensorBoard -> setting that every run shows there."""


def hyperparameters(settings: Settings, overrides: list[str]) -> dict[str, Any]:
    """Settings for TensorBoard's HParams tab; None: not applicable to this run.

    All that can change the result, apart from defaults of the schema, and whatever the overrides set. The classes and
    the source of the data are named by their choices.
    """
    values = asdict(settings)
    flat = dict(flatten(values))
    given = {word.partition("=")[0].lstrip("+") for word in overrides}
    keys = [key for key in flat if key in given and not is_incidental(key)]
    keys += [key for key in identity(values) if not (key.endswith("._target_") or key.startswith("data.source."))]
    columns = {name: flat.get(key) for name, key in HYPERPARAMETERS.items()}
    if settings.model.family == "adversarial":
        columns["likelihood"] = "none"
    columns["network"] = network_of([flat.get(f"model.{part}._target_") for part in NETWORKS])
    return columns | {key: flat[key] for key in sorted(set(keys) - set(HYPERPARAMETERS.values()))}
