"""Randomness as a function of position: noise depends on where it is used, not on earlier draws.

A resumed run therefore draws the same numbers as an uninterrupted one, and the evaluation noise of an image depends on
neither the chunk size nor the other images. A process that computes a slice of a batch draws the noise of the whole
batch.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaerun.deprecation import module_aliases


def derive_seed(*position: int | str) -> int:
    """Hash a position to a seed in [0, 2^63), e.g. derive_seed(seed, "step", 17).

    torch's CPU generator only uses the low 32 bits, so that among 100,000 positions about one pair collides.
    """
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeded_generator(device: torch.device | str, *position: int | str) -> torch.Generator:
    """Create a torch generator on the device, seeded by the position."""
    return torch.Generator(device=device).manual_seed(derive_seed(*position))


def permutation(n: int, *position: int | str) -> Tensor:
    """Random permutation of 0..n-1 [n], always drawn on the CPU so that it does not depend on the device."""
    return torch.randperm(n, generator=seeded_generator("cpu", *position), dtype=torch.int64, device="cpu")


def fixed_uniform(shape: Sequence[int], start: int, stop: int, device: torch.device, *position: int | str) -> Tensor:
    """Uniform noise [stop - start, *shape] float32: rows start..stop-1 of a fixed table.

    The table is generated on the CPU in blocks of 256 rows, each with its own seed, so that it does not depend on the
    device.
    """
    block_size = 256
    blocks = []
    for index in range(start // block_size, -(-stop // block_size)):
        source = seeded_generator("cpu", *position, index)
        block = torch.rand(block_size, *shape, generator=source, dtype=torch.float32, device="cpu")
        blocks.append(block[max(start - index * block_size, 0) : stop - index * block_size])
    return torch.cat(blocks).to(device)


@dataclass
class BatchSlice:
    """Rows start..stop-1 of a batch of `total` images; `draws` counts how often noise was drawn for them."""

    start: int
    stop: int
    total: int
    draws: int = 0


class _NoiseContext(threading.local):
    batch_slice: BatchSlice | None = None  # None: this process computes the whole batch
    source: torch.Generator | None = None  # None: torch's global generator


_context = _NoiseContext()  # per thread, since each thread may train a run


@contextmanager
def batch_slice(start: int, stop: int, total: int) -> Iterator[BatchSlice]:
    """Context in which batch noise is rows start..stop-1 of the noise for a batch of `total` images."""
    outer, _context.batch_slice = _context.batch_slice, BatchSlice(start, stop, total)
    try:
        yield _context.batch_slice
    finally:
        _context.batch_slice = outer


@contextmanager
def use_generator(source: torch.Generator | None) -> Iterator[None]:
    """Context in which this thread draws batch noise from `source` (None: torch's global generator)."""
    outer, _context.source = _context.source, source
    try:
        yield
    finally:
        _context.source = outer


def batch_normal(shape: Sequence[int], dim: int, **options: Any) -> Tensor:
    """Draw standard normal noise for a training batch, from torch's global generator or that of `use_generator`.

    Arguments:
        shape: shape of the result.
        dim: batch dimension.
        options: dtype and device, both of which must be given: torch's defaults are the user's to change.
    """
    return _draw_batch(torch.randn, shape, dim, options)


def batch_uniform(shape: Sequence[int], dim: int, **options: Any) -> Tensor:
    """Like batch_normal, but uniform in [0, 1)."""
    return _draw_batch(torch.rand, shape, dim, options)


def _draw_batch(draw: Any, shape: Sequence[int], dim: int, options: dict[str, Any]) -> Tensor:
    part, options = _context.batch_slice, options | {"generator": _context.source}
    if part is None:
        return draw(shape, **options)
    if shape[dim] != part.stop - part.start:
        raise RuntimeError(f"noise requested for {shape[dim]} images, but this process has {part} of the batch")
    part.draws += 1
    full_shape = [*shape[:dim], part.total, *shape[dim + 1 :]]
    return draw(full_shape, **options).narrow(dim, part.start, part.stop - part.start).contiguous()


class ImageNoise:
    """Standard normal noise [k, B, d] that depends only on the seed, the image and the name of the stream.

    Arguments:
        seed: seed of the run.
        images: indices of the B images within their split.
        latent_dim: latent dimension d.
        like: tensor with the dtype and device of the noise.
        cache: keep the noise for reuse; validation needs the same noise every epoch.
    """

    def __init__(self, seed: int, images: Sequence[int], latent_dim: int, like: Tensor, cache: bool = False) -> None:
        self.seed, self.images, self.latent_dim = seed, list(images), latent_dim
        self.dtype, self.device = like.dtype, like.device
        self._cache: dict[tuple[str, int], Tensor] | None = {} if cache else None

    def __call__(self, stream: str, k: int) -> Tensor:
        if self._cache is not None and (stream, k) in self._cache:
            return self._cache[stream, k]
        # Noise is drawn in place, image by image, to save kernel launches on a GPU.
        out = torch.empty(len(self.images), k, self.latent_dim, dtype=self.dtype, device=self.device)
        source = torch.Generator(device=self.device)
        for image_noise, image in zip(out.unbind(), self.images, strict=True):
            image_noise.normal_(generator=source.manual_seed(derive_seed(self.seed, "image", image, stream)))
        out = out.transpose(0, 1).contiguous()
        if self._cache is not None:
            self._cache[stream, k] = out
        return out

    def select(self, rows: Tensor) -> ImageNoise:
        """That of images `rows` [M] of the batch."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return ImageNoise(self.seed, [self.images[i] for i in rows.tolist()], self.latent_dim, like)


__getattr__ = module_aliases(__name__, {"generator": "seeded_generator", "mix": "derive_seed"})
