"""Latent traversals of a generator: interpolation, vector arithmetic and sweeps of a code.

A generative model is a function `generate(noise [N, n], c [N, classes] or None) -> images [N, C, H, W] in [0, 1]` of
standard normal noise. The noise of sample i depends on i and n only (`sample_noise`); samples 0 to 99 are the tiles of
the picture `samples`, row by row, so that users can refer to what they see there.

In n dimensions standard normal noise lies near a sphere of radius sqrt(n). A straight line between two samples leaves
it: its midpoint has a norm of about sqrt(n / 2), where the generator has hardly been trained (White 2016, section 2.1).
Interpolation therefore follows great circles (Shoemake 1985), and the mean noise of a set of m samples, which is about
sqrt(m) times too short, is rescaled to the sphere. Vector arithmetic uses the means as they are (Radford et al. 2016,
section 6.3.2): the signed sum of three means of three samples each is as long as one sample.

Pictures are grids [channels, height, width] in [0, 1].
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vaerun.errors import InputError
from vaerun.evaluation.plots.pictures import SEED, grid, sample_noise
from vaerun.randomness import seeded_generator

Generate = Callable[[Tensor, Tensor | None], Tensor]
GenerateWithCode = Callable[[Tensor, int, Tensor], Tensor]
Sets = Mapping[str, Sequence[int]]

NEIGHBOUR_DISTANCE = 0.25  # half the width of the uniform noise around a result (Radford et al. 2016, figure 7)
BLOCK_SIDE = 3  # side of that figure's block: the result in the middle of 3 x 3
BLANK_GREY = 0.5  # the grey that `grid` paints between tiles
MAX_CATEGORIES = 20
CONTINUOUS_VALUES, CONTINUOUS_LIMIT = 10, 2.0  # values from -2 to 2 (Chen et al. 2016, figure 2)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[0-9]{1,18}")  # below 2^63, like all numbers in settings
_TOKEN = re.compile(r"[+-]|[^\s+-]+")


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation [T, n] from a [n] at t = 0 to b [n] at t = 1, at t [T] in [0, 1].

    The direction moves along the great circle at constant angular speed, cos(t w) u + sin(t w) e with u = a / |a|, e
    the unit vector orthogonal to u in the plane of a and b, and w their angle; the norm changes linearly from |a| to
    |b|. (Shoemake's weights sin((1 - t) w) / sin w and sin(t w) / sin w on a and b themselves, as in White 2016, give a
    linear norm only for |a| = |b|, where the two agree.) The end points are a and b to the last bit.

    Where a and b do not span a plane (parallel, opposite or zero), the path is the straight line. For parallel vectors
    that is the limit; opposite ones have no unique great circle.
    """
    t = t.to(a).unsqueeze(-1)
    start, end = a.norm(), b.norm()
    path = a + t * (b - a)
    u, v = a / start, b / end
    cosine = u @ v
    orthogonal = v - cosine * u
    sine = orthogonal.norm()
    # Below the threshold line and circle agree to rounding, and e is mostly noise. The sine of a zero vector is NaN,
    # which is not above the threshold either.
    if sine > torch.finfo(a.dtype).eps ** 0.5:
        angle = torch.atan2(sine, cosine)
        direction = torch.cos(t * angle) * u + torch.sin(t * angle) * (orthogonal / sine)
        path = (start + t * (end - start)) * direction
    return torch.where(t == 0, a, torch.where(t == 1, b, path))


def parse_sets(sets: Mapping[Any, Any]) -> dict[str, tuple[int, ...]]:
    """Validate named sets of sample numbers.

    Raises InputError for names that are not identifiers (a leading digit would be a sample number), and for anything
    but a list of one or more non-negative integers.
    """
    parsed = {}
    for name, members in sets.items():
        where = f"evaluation.sets.{' '.join(str(name).split())}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"{where}: a set's name consists of letters, digits and _, and does not start with a digit"
            )
        if not isinstance(members, Sequence) or isinstance(members, str) or not len(members):
            raise InputError(f"{where} must be a list of one or more sample numbers (such as [0, 4]), got {members!r}")
        for number in members:
            if not _is_sample_number(number):
                raise InputError(f"{where}: a sample number is an integer of at least 0, got {number!r}")
        parsed[name] = tuple(members)
    return parsed


def parse_waypoints(waypoints: Sequence[str | int], sets: Sets) -> list[str | int]:
    """Validate the waypoints of an interpolation: sample numbers and names of sets.

    Raises InputError for fewer than two waypoints, an unknown set, or a number that is not a non-negative integer.
    """
    if isinstance(waypoints, str) or len(waypoints) < 2:
        raise InputError(
            f"evaluation.interpolation needs a list of two or more sets or sample numbers, got {waypoints!r}"
        )
    return [_operand(waypoint, sets, "evaluation.interpolation") for waypoint in waypoints]


def parse_expression(expression: str, sets: Sets) -> list[tuple[int, str | int]]:
    """Parse names and numbers joined by + and - (a leading sign is allowed) into (sign, name or sample number) terms.

    Raises InputError, quoting the token, for anything else and for an unknown set.
    """
    where, terms, sign = "evaluation.arithmetic", list[tuple[int, str | int]](), 0
    if not isinstance(expression, str):  # OmegaConf accepts a list as an element of a list of strings
        raise InputError(
            f"{where} must be a list of strings such as smiling - neutral + 7, but contains {expression!r}"
        )
    tokens = _TOKEN.findall(expression)
    if not tokens:
        raise InputError(f"{where} is empty: join sets and sample numbers with + and -, such as smiling - neutral + 7")
    for token in tokens:
        if token in ("+", "-"):
            if sign:
                raise InputError(f"{where}: two signs in a row, the second {token!r}, in {expression!r}")
            sign = 1 if token == "+" else -1
        else:
            operand = _operand(token, sets, where)
            if terms and not sign:
                raise InputError(f"{where}: + or - is missing before {token!r} in {expression!r}")
            terms.append((sign or 1, operand))
            sign = 0
    if sign:
        raise InputError(f"{where}: a set or sample number is missing after the last {tokens[-1]!r} in {expression!r}")
    return terms


def interpolation(
    generate: Generate,
    waypoints: Sequence[str | int],
    sets: Sets,
    n: int,
    like: Tensor,
    steps: int = 8,
    c: Tensor | None = None,
) -> Tensor:
    """Picture of the path from waypoint to waypoint: a row per pair of neighbours, `steps` columns with both ends.

    Arguments:
        waypoints: sample numbers and names of sets. A set stands for the mean noise of its members, rescaled to the
            mean of their norms, so that it lies on the sphere of the samples; a set of one is that sample.
        sets: from `parse_sets`.
        n: dimensions of the noise.
        like: a tensor with the dtype and device to use.
        c: the label [classes] of all tiles, for a conditional model.

    Raises InputError as `parse_waypoints` does, and for fewer than two steps.
    """
    waypoints = parse_waypoints(waypoints, sets)
    if steps < 2:
        raise InputError(f"evaluation.interpolation needs at least 2 steps, for its two ends, got {steps}")
    points = [_on_sphere(sample_noise(_members(waypoint, sets), n, like)) for waypoint in waypoints]
    t = torch.linspace(0, 1, steps, dtype=like.dtype, device=like.device)
    noise = [slerp(a, b, t) for a, b in pairwise(points)]
    return grid(_images(generate, torch.cat(noise), c), steps)


def arithmetic(
    generate: Generate, expression: str, sets: Sets, n: int, like: Tensor, c: Tensor | None = None
) -> tuple[Tensor, str]:
    """Vector arithmetic on mean noise (Radford et al. 2016, section 6.3.2 and figure 7), such as smiling - neutral + 7.

    The result is the signed sum of the operands' mean noises, not rescaled. The picture has three tiles per row:

    * first the operands in the order of the expression, each the image of its mean noise (without the sign), padded
      with blank tiles to a full row;
    * then three rows with the result in the middle, surrounded by images of the result plus noise from U(-0.25, 0.25)
      in every dimension, the same eight for every expression. (The paper's prior is U(-1, 1); relative to standard
      normal noise the same perturbation is smaller.)

    Arguments:
        expression, sets: see `parse_expression` and `parse_sets`.
        n, like, c: see `interpolation`.

    Returns the picture and the normalised expression. Raises InputError as `parse_expression` does.
    """
    terms = parse_expression(expression, sets)
    means = torch.stack([sample_noise(_members(operand, sets), n, like).mean(0) for _, operand in terms])
    result = torch.tensor([sign for sign, _ in terms], device="cpu").to(means) @ means
    source = seeded_generator("cpu", SEED, "neighbours")
    uniform = torch.rand(BLOCK_SIDE * BLOCK_SIDE - 1, n, dtype=torch.float32, device="cpu", generator=source)
    around = result + NEIGHBOUR_DISTANCE * (2 * uniform.to(like) - 1)
    middle = len(around) // 2
    images = _images(generate, torch.cat([means, around[:middle], result[None], around[middle:]]), c)
    operands, block = images[: len(terms)], images[len(terms) :]
    blank = torch.full_like(images[:1], BLANK_GREY).expand(-len(terms) % BLOCK_SIDE, -1, -1, -1)
    caption = "".join(f" {'-' if sign < 0 else '+'} {operand}" for sign, operand in terms)
    caption = f"-{caption[3:]}" if terms[0][0] < 0 else caption[3:]
    return grid(torch.cat([operands, blank, block]), BLOCK_SIDE), caption


def code_values(categories: int | None, like: Tensor) -> Tensor:
    """The values of a code to show, on the device of `like`.

    For a categorical code its categories as int64, at most the first 20; for a continuous one (None) ten values from -2
    to 2 in the dtype of `like`, beyond its prior U(-1, 1) to show how it extrapolates (Chen et al. 2016, figure 2).
    """
    if categories is None:
        limit = CONTINUOUS_LIMIT
        return torch.linspace(-limit, limit, CONTINUOUS_VALUES, dtype=like.dtype, device=like.device)
    return torch.arange(min(categories, MAX_CATEGORIES), device=like.device)


def code_sweep(
    generate_with_code: GenerateWithCode, index: int, values: Tensor, n: int, like: Tensor, rows: int = 10
) -> Tensor:
    """Picture of one code (Chen et al. 2016, figure 2): a column per value, a row per noise vector.

    Within a row only the code changes; row i is sample i except for the code.

    Arguments:
        generate_with_code: noise [N, n], index of the code, its values [N] -> images [N, C, H, W] in [0, 1].
        index: of the code.
        values: [V], from `code_values`.
        n, like: see `interpolation`.
    """
    noise = sample_noise(range(rows), n, like).repeat_interleave(len(values), 0)
    with torch.no_grad():
        return grid(generate_with_code(noise, index, values.repeat(rows)), len(values))


def _images(generate: Generate, noise: Tensor, c: Tensor | None) -> Tensor:
    with torch.no_grad():
        return generate(noise, None if c is None else c.expand(len(noise), -1))


def _members(operand: str | int, sets: Sets) -> Sequence[int]:
    return sets[operand] if isinstance(operand, str) else [operand]


def _on_sphere(noise: Tensor) -> Tensor:
    """The mean [n] of noise [m, n], rescaled to the mean of the m norms; unchanged for m = 1."""
    if len(noise) == 1:
        return noise[0]
    mean = noise.mean(0)
    return mean * (noise.norm(dim=1).mean() / mean.norm())


def _is_sample_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _operand(word: object, sets: Sets, where: str) -> str | int:
    """Parse a sample number or the name of a set."""
    if isinstance(word, str):
        if _NUMBER.fullmatch(word):
            return int(word)
        if word in sets:
            return word
        if _NAME.fullmatch(word):
            close = difflib.get_close_matches(word, list(sets), n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}? " if close else ""
            known = f"known sets: {', '.join(sets)}" if sets else "define sets under evaluation.sets"
            raise InputError(f"{where}: unknown set {word!r}; {hint}{known}")
    elif isinstance(word, int) and _is_sample_number(word):
        return word
    raise InputError(f"{where}: {word!r} is neither the name of a set nor a sample number (0, 1, 2, ...)")
