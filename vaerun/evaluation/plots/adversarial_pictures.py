"""Pictures of an adversarial model, from fixed noise so that they are comparable over time."""

from __future__ import annotations

from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.evaluation.latent.traversals import code_sweep, code_values
from vaerun.evaluation.plots.pictures import COLUMNS, class_grid, data_picture, grid, sample_images
from vaerun.models import AdversarialModel


def adversarial_pictures(model: AdversarialModel, split: Split) -> dict[str, Tensor]:
    """Grids by name: data, samples, classes (if conditional: one class per row), code_NAME (see code_sweep)."""
    pictures = data_picture(split) | {"samples": grid(sample_images(model, split), COLUMNS)}
    n, like = model.noise_dim, model.zero
    if model.classes:
        pictures["classes"] = class_grid(model.generate, model.classes, n, like)
    if model.codes is None:
        return pictures
    sizes: list[int | None] = [*model.codes.categorical, *[None] * model.codes.continuous]
    for index, (name, categories) in enumerate(zip(model.codes.names, sizes, strict=True)):
        values = code_values(categories, like)
        pictures[f"code_{name}"] = code_sweep(model.generate_with_code, index, values, n, like)
    return pictures
