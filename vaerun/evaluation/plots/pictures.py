"""Pictures of a model: data and reconstructions, samples, a grid of classes, the 2-D latent manifold.

Each is a grid of images [1 or 3, height, width] in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vaerun.data.dataset import Split
from vaerun.models import AdversarialModel, LatentModel
from vaerun.randomness import ImageNoise

COLUMNS, ROWS, SEED = 10, 10, 0
MAX_CLASSES = 100
MIN_SIDE = 32  # smaller images are enlarged by an integer factor, to at most this side


def grid(images: Tensor, columns: int) -> Tensor:
    """Arrange images [N, C, H, W] in [0, 1], as `visible` has them, in a grid, row by row."""
    from torchvision.utils import make_grid  # over a second to import: deferred until a picture is needed

    scale = max(1, MIN_SIDE // max(images.shape[-2:]))
    larger = visible(images).clamp(0, 1).cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return make_grid(larger, nrow=columns, padding=1, pad_value=0.5)


def visible(images: Tensor) -> Tensor:
    """Images of any number of channels [N, C, H, W] as grey or RGB ones, [N, 1 or 3, H, W].

    Two channels are shown as magenta and green, grey where they agree; of four or more, the first three as RGB.
    """
    channels = images.shape[1]
    return images[:, (0, 1, 0)] if channels == 2 else images[:, :3]


def sample_noise(numbers: Sequence[int], n: int, like: Tensor) -> Tensor:
    """The standard normal noise [len(numbers), n] of samples by number, with the dtype and device of `like`.

    It is drawn in single precision on the CPU, so that sample 17 is the same image everywhere.
    """
    return ImageNoise(SEED, numbers, n, torch.zeros((), dtype=torch.float32, device="cpu"))("samples", 1)[0].to(like)


def likelihood_pictures(model: LatentModel, split: Split) -> dict[str, Tensor]:
    """Grids by name, from the split's first images and fixed noise, so that they are comparable over time.

    data, reconstructions (E[x | z] at the posterior's centre, in the positions of data), samples (E[x | z], z from the
    prior), classes (if conditional: one class per row, at most 100), manifold (if d = 2: z at normal quantiles). A
    plain autoencoder, which has no prior, has the first two only.
    """
    to_unit = split.transform.to_unit
    pictures = data_and_reconstructions(model, split)
    if not model.has_density:  # no prior to draw from
        return pictures
    with torch.no_grad():
        pictures["samples"] = grid(to_unit(sample_images(model, split)), COLUMNS)
        if model.classes:
            pictures["classes"] = class_grid(
                lambda noise, c: to_unit(model.generate(noise, c)), model.classes, model.noise_dim, model.mean
            )
        if model.latent_dim == 2 and not model.classes:
            pictures["manifold"] = grid(to_unit(manifold(model, 20)), 20)
    return pictures


def data_and_reconstructions(model: LatentModel, split: Split) -> dict[str, Tensor]:
    """The grids of likelihood_pictures that show the split's images: data, reconstructions."""
    to_unit = split.transform.to_unit
    with torch.no_grad():
        batch = split.batch(0, min(COLUMNS * 5, len(split)))
        noise = ImageNoise(SEED, batch.rows.tolist(), model.latent_dim, model.mean)
        labels = batch.c if model.classes else None
        q = model.infer(model.joint(batch.x, labels, noise))
        return {
            "data": grid(to_unit(batch.x), COLUMNS),
            "reconstructions": grid(to_unit(model.decode_mean(q.centre, labels)), COLUMNS),
        }


def data_picture(split: Split) -> dict[str, Tensor]:
    """A grid of the split's first images."""
    batch = split.batch(0, min(COLUMNS * 5, len(split)))
    return {"data": grid(split.transform.to_unit(batch.x), COLUMNS)}


def sample_images(model: LatentModel | AdversarialModel, split: Split) -> Tensor:
    """Samples 0 to COLUMNS * ROWS - 1 [COLUMNS * ROWS, C, H, W]; for a model with a likelihood, E[x | z].

    The labels of a conditional model differ between neighbours in a row and in a column.
    """
    c = split.one_hot(sample_labels(model.classes).to(split.images.device)) if model.classes else None
    with torch.no_grad():
        return model.generate(sample_noise(range(COLUMNS * ROWS), model.noise_dim, next(model.parameters())), c)


def sample_labels(classes: int) -> Tensor:
    """The labels of a conditional model's samples, int64 [COLUMNS * ROWS]."""
    numbers = torch.arange(COLUMNS * ROWS, device="cpu")
    return (numbers + numbers // COLUMNS) % classes


def class_grid(generate: Callable[[Tensor, Tensor | None], Tensor], classes: int, n: int, like: Tensor) -> Tensor:
    """Picture of a conditional model: a row per class, at most 100; column i has the noise of sample i."""
    rows = min(classes, MAX_CLASSES)
    labels = F.one_hot(torch.arange(rows, device=like.device), classes).to(like.dtype)
    noise = sample_noise(range(COLUMNS), n, like).repeat(rows, 1)
    with torch.no_grad():
        return grid(generate(noise, labels.repeat_interleave(COLUMNS, 0)), COLUMNS)


def manifold(model: LatentModel, n: int) -> Tensor:
    """E[x | z] [n * n, C, H, W] at normal quantiles of a regular grid (Kingma & Welling 2014, figure 4)."""
    numbers = torch.arange(n, dtype=torch.float32, device="cpu")
    quantiles = math.sqrt(2) * torch.erfinv(2 * (numbers + 0.5) / n - 1)
    z = torch.cartesian_prod(-quantiles, quantiles).flip(1)
    return model.decode_mean(z.to(model.mean))


def save_png(picture: Tensor) -> bytes:
    """A grid [C, H, W] in [0, 1] as the bytes of a PNG file."""
    import io

    from PIL import Image

    pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
