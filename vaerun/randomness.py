"""Randomness as a function of position: what is drawn depends on where it is used, never on what was drawn before.

So a resumed run draws what an uninterrupted one would have drawn, and an image's evaluation noise is the same whatever
the chunk size and whichever images stand beside it. A process that sees a part of a batch draws the noise of all of it.
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
    """A seed in [0, 2^63) that is a fixed function of the position, e.g. mix(seed, "step", 17).

    torch's CPU generator uses its low 32 bits: among 100,000 positions about one pair shares its numbers.
    """
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeded_generator(device: torch.device | str, *position: int | str) -> torch.Generator:
    """A torch generator on that device, seeded by the position."""
    return torch.Generator(device=device).manual_seed(derive_seed(*position))


def permutation(n: int, *position: int | str) -> Tensor:
    """A permutation of 0..n-1 [n] on the CPU, the same on every device."""
    return torch.randperm(n, generator=seeded_generator("cpu", *position))


def fixed_uniform(shape: Sequence[int], start: int, stop: int, device: torch.device, *position: int | str) -> Tensor:
    """Uniform numbers [stop - start, *shape] that belong to rows start..stop-1 of a fixed table of noise.

    The table is drawn in blocks of 256 rows, each from its own position, on the CPU: the numbers, and with them what is
    drawn once for a data set, are the same on every device.
    """
    block = 256
    parts = []
    for b in range(start // block, -(-stop // block)):
        table = torch.rand(block, *shape, generator=seeded_generator("cpu", *position, b))
        parts.append(table[max(start - b * block, 0) : stop - b * block])
    return torch.cat(parts).to(device)


@dataclass
class BatchSlice:
    """Rows start..stop-1 of a batch of `total`; `draws` counts what has been drawn for them."""

    start: int
    stop: int
    total: int
    draws: int = 0


class _NoiseContext(threading.local):
    part: BatchSlice | None = None  # of the batch at hand; None: it is seen whole
    source: torch.Generator | None = None  # None: torch's global generator


_context = _NoiseContext()  # each thread has its own run


@contextmanager
def batch_slice(start: int, stop: int, total: int) -> Iterator[BatchSlice]:
    """Inside, a batch is rows start..stop-1 of one of `total`, and has those rows of the noise of all of it."""
    outer, _context.part = _context.part, BatchSlice(start, stop, total)
    try:
        yield _context.part
    finally:
        _context.part = outer


@contextmanager
def use_generator(source: torch.Generator | None) -> Iterator[None]:
    """Inside, this thread's batch noise comes from this generator (None: torch's global one)."""
    outer, _context.source = _context.source, source
    try:
        yield
    finally:
        _context.source = outer


def batch_normal(shape: Sequence[int], dim: int, **options: Any) -> Tensor:
    """Standard normal numbers for a training batch, from torch's global generator or that of `use_generator`.

    Arguments:
        shape: of the result.
        dim: which dimension counts the batch's images.
        options: dtype and device.
    """
    return _of_batch(torch.randn, shape, dim, options)


def batch_uniform(shape: Sequence[int], dim: int, **options: Any) -> Tensor:
    """Uniform numbers in [0, 1), otherwise as batch_normal."""
    return _of_batch(torch.rand, shape, dim, options)


def _of_batch(draw: Any, shape: Sequence[int], dim: int, options: dict[str, Any]) -> Tensor:
    part, options = _context.part, options | {"generator": _context.source}
    if part is None:
        return draw(shape, **options)
    if shape[dim] != part.stop - part.start:
        raise RuntimeError(f"noise for {shape[dim]} images of a batch of which {part} are at hand")
    part.draws += 1
    whole = [*shape[:dim], part.total, *shape[dim + 1 :]]
    return draw(whole, **options).narrow(dim, part.start, part.stop - part.start).contiguous()


class ImageNoise:
    """Standard normal noise [k, B, d] that depends on the seed, the image and the stream's name, and on nothing else.

    Arguments:
        seed: of the run.
        images: the images' numbers within their split, length B.
        latent_dim: d.
        like: a tensor whose dtype and device are used.
        keep: remember what was drawn (for validation, which asks for the same numbers every epoch).
    """

    def __init__(self, seed: int, images: Sequence[int], latent_dim: int, like: Tensor, cache: bool = False) -> None:
        self.seed, self.images, self.latent_dim = seed, list(images), latent_dim
        self.dtype, self.device = like.dtype, like.device
        self._cache: dict[tuple[str, int], Tensor] | None = {} if cache else None

    def __call__(self, stream: str, k: int) -> Tensor:
        if self._cache is not None and (stream, k) in self._cache:
            return self._cache[stream, k]
        # On a GPU the launches count: each image's numbers are drawn where they stay.
        out = torch.empty(len(self.images), k, self.latent_dim, dtype=self.dtype, device=self.device)
        source = torch.Generator(device=self.device)
        for row, image in zip(out.unbind(), self.images, strict=True):
            row.normal_(generator=source.manual_seed(derive_seed(self.seed, "image", image, stream)))
        out = out.transpose(0, 1).contiguous()
        if self._cache is not None:
            self._cache[stream, k] = out
        return out


__getattr__ = module_aliases(__name__, {"generator": "seeded_generator", "mix": "derive_seed"})
