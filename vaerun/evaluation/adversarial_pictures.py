"""Pictures of an adversarial model from fixed noise, so that they can be compared over time."""

from __future__ import annotations

import torch
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.evaluation.pictures import COLUMNS, ROWS, data_picture, grid, sample_noise
from vaerun.evaluation.traversals import class_grid, code_sweep, code_values
from vaerun.models import AdversarialModel


def numbered_samples(model: AdversarialModel, split: Split, count: int = COLUMNS * ROWS) -> Tensor:
    """Samples number 0 to count - 1, [count, C, H, W] in [0, 1]; a conditional model's labels are mixed."""
    noise = sample_noise(range(count), model.noise_dim, model.zero)
    c = None
    if model.classes:
        c = split.one_hot(torch.arange(count, device=model.zero.device) * 7 % model.classes)
    with torch.no_grad():
        return model.generate(noise, c)


def adversarial_pictures(model: AdversarialModel, split: Split) -> dict[str, Tensor]:
    """Grids by name: data, samples, classes (conditional: one class a row), code_NAME (one code; rows: noise)."""
    found = data_picture(split) | {"samples": grid(numbered_samples(model, split), COLUMNS)}
    n, like = model.noise_dim, model.zero
    if model.classes:
        found["classes"] = class_grid(model.generate, model.classes, n, like)
    if model.codes is None:
        return found
    sizes: list[int | None] = [*model.codes.categorical, *[None] * model.codes.continuous]
    for index, (name, categories) in enumerate(zip(model.codes.names, sizes, strict=True)):
        values = code_values(categories, like)
        found[f"code_{name}"] = code_sweep(model.generate_with_code, index, values, n, like)
    return found
