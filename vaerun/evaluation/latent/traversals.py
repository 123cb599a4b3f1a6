"""Walks through a generator's noise: interpolation, vector arithmetic, sweeps of a code, a grid of classes.

A generative model is seen as `generate(noise [N, n], c [N, classes] or None) -> images [N, C, H, W] in [0, 1]` with
standard normal noise. Sample number i has noise that depends on i and n only (`sample_noise`); numbers 0 to 99 are the
tiles of the picture `samples`, row by row, so that what is seen there can be named here.

In n dimensions standard normal noise lies near a sphere of radius sqrt(n). A straight line between two samples leaves
it: its middle has a norm of about sqrt(n / 2), where the generator has hardly been trained (White 2016, section 2.1).
Interpolation therefore follows great circles (Shoemake 1985), and the mean noise of a set of m samples, which is about
sqrt(m) times too short, is put back on the shell. Vector arithmetic takes means as they are (Radford et al. 2016,
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
BLOCK_SIDE = 3  # columns of that figure's block: the result in the middle of 3 x 3
BLANK_GREY = 0.5  # what `grid` paints between tiles
MAX_CATEGORIES = 20
CONTINUOUS_VALUES, CONTINUOUS_LIMIT = 10, 2.0  # values from -2 to 2 (Chen et al. 2016, figure 2)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[0-9]{1,18}")  # below 2^63, as all numbers of settings
_TOKEN = re.compile(r"[+-]|[^\s+-]+")


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation [T, n] from a [n] at t = 0 to b [n] at t = 1, at t [T] in [0, 1].

    The direction moves along the great circle at constant angular speed, cos(t w) u + sin(t w) e with u = a / |a|, e
    the unit vector at right angles to u in the plane of a and b, and w their angle; the norm moves linearly from |a| to
    |b|. (With Shoemake's weights sin((1 - t) w) / sin w and sin(t w) / sin w on a and b themselves, as White 2016 has
    it, the norm would not be linear unless |a| = |b|; there the two agree.) End points are a and b to the last bit.

    Where a and b span no plane, being parallel, opposite, or zero, it is the straight line: for parallel ones that is
    the limit, while opposite ones (all there can be at n = 1, besides parallel ones) have no great circle of their own.
    """
    at = t.to(a).unsqueeze(-1)
    start, end = a.norm(), b.norm()
    path = a + at * (b - a)
    u, v = a / start, b / end
    cosine = u @ v
    across = v - cosine * u
    sine = across.norm()
    # Below it line and circle agree to rounding, and e is mostly noise; of a zero vector the sine is NaN, which is not
    # above it either.
    if sine > torch.finfo(a.dtype).eps ** 0.5:
        angle = torch.atan2(sine, cosine)
        direction = torch.cos(at * angle) * u + torch.sin(at * angle) * (across / sine)
        path = (start + at * (end - start)) * direction
    return torch.where(at == 0, a, torch.where(at == 1, b, path))


def parse_sets(sets: Mapping[Any, Any]) -> dict[str, tuple[int, ...]]:
    """Named sets of sample numbers, checked.

    Raises InputError for a name that is not letters, digits and _ (a digit not first: that would be a sample number),
    and for anything but a list of one or more whole numbers of at least 0.
    """
    parsed = {}
    for name, members in sets.items():
        where = f"evaluation.sets.{' '.join(str(name).split())}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{where}: a set's name is made of letters, digits and _, and does not begin with a digit")
        if not isinstance(members, Sequence) or isinstance(members, str) or not len(members):
            raise InputError(f"{where} must be a list of one or more sample numbers (such as [0, 4]), got {members!r}")
        for number in members:
            if not _is_sample_number(number):
                raise InputError(f"{where}: a sample number is a whole number of at least 0, got {number!r}")
        parsed[name] = tuple(members)
    return parsed


def parse_waypoints(stops: Sequence[str | int], sets: Sets) -> list[str | int]:
    """The stops of an interpolation, checked: sample numbers and names of sets.

    Raises InputError for fewer than two, a name that no set has, or a number that is not whole and at least 0.
    """
    if isinstance(stops, str) or len(stops) < 2:
        raise InputError(f"evaluation.interpolation needs a list of two or more sets or sample numbers, got {stops!r}")
    return [_operand(stop, sets, "evaluation.interpolation") for stop in stops]


def parse_expression(expression: str, sets: Sets) -> list[tuple[int, str | int]]:
    """The terms (sign, set's name or sample number) of names and numbers joined by + and -; a sign may come first.

    Raises InputError, naming the token, for anything else, and for a name that no set has.
    """
    where, terms, sign = "evaluation.arithmetic", list[tuple[int, str | int]](), 0
    if not isinstance(expression, str):  # OmegaConf lets a list stand where its list has texts
        raise InputError(f"{where} is a list of texts such as smiling - neutral + 7, got {expression!r} in it")
    tokens = _TOKEN.findall(expression)
    if not tokens:
        raise InputError(f"{where} is empty: join sets and sample numbers by + and -, such as smiling - neutral + 7")
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
    stops: Sequence[str | int],
    sets: Sets,
    n: int,
    like: Tensor,
    steps: int = 8,
    c: Tensor | None = None,
) -> Tensor:
    """A picture of the way from stop to stop: a row for each pair of neighbours, `steps` columns with both ends.

    Arguments:
        stops: sample numbers and names of sets. A set stands for the mean noise of its members, rescaled to the mean of
            their norms, so that it lies on the shell where samples lie; a set of one is that sample.
        sets: as from `parse_sets`.
        n: latent numbers of a sample.
        like: a tensor whose dtype and device are used.
        c: the label [classes] of all tiles, of a conditional model.

    Raises InputError as `parse_stops` does, and for fewer than two steps.
    """
    found = parse_waypoints(stops, sets)
    if steps < 2:
        raise InputError(f"evaluation.interpolation needs at least 2 steps, for its two ends, got {steps}")
    places = [_on_shell(sample_noise(_members(stop, sets), n, like)) for stop in found]
    t = torch.linspace(0, 1, steps, dtype=like.dtype, device=like.device)
    noise = [slerp(a, b, t) for a, b in pairwise(places)]
    return grid(_images(generate, torch.cat(noise), c), steps)


def arithmetic(
    generate: Generate, expression: str, sets: Sets, n: int, like: Tensor, c: Tensor | None = None
) -> tuple[Tensor, str]:
    """Vector arithmetic on mean noise (Radford et al. 2016, section 6.3.2 and figure 7), such as smiling - neutral + 7.

    The result is the signed sum of the operands' mean noises, as they are. Three tiles a row:

    * first the operands in the expression's order, each the image of its mean noise (without the sign), the last row
      filled up with blank tiles in the colour between tiles;
    * then three rows: the result in the middle, and around it the images of the result plus noise from U(-0.25, 0.25)
      in every dimension, the same eight for every expression. (In the paper the prior is U(-1, 1); against standard
      normal noise the same numbers are a smaller step.)

    Arguments:
        expression, sets: as for `parse_expression`, and as from `parse_sets`.
        n, like, c: as for `interpolation`.

    Returns the picture, and the expression in even spacing. Raises InputError as `parse_expression` does.
    """
    terms = parse_expression(expression, sets)
    means = torch.stack([sample_noise(_members(operand, sets), n, like).mean(0) for _, operand in terms])
    result = torch.tensor([sign for sign, _ in terms]).to(means) @ means
    uniform = torch.rand(
        BLOCK_SIDE * BLOCK_SIDE - 1, n, dtype=torch.float32, generator=seeded_generator("cpu", SEED, "neighbours")
    )
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

    Of a categorical code its categories as int64, the first 20 at most; of a continuous one (None) ten values from -2
    to 2 in the dtype of `like`: beyond its prior U(-1, 1), to show how it extrapolates (Chen et al. 2016, figure 2).
    """
    if categories is None:
        reach = CONTINUOUS_LIMIT
        return torch.linspace(-reach, reach, CONTINUOUS_VALUES, dtype=like.dtype, device=like.device)
    return torch.arange(min(categories, MAX_CATEGORIES), device=like.device)


def code_sweep(
    generate_with_code: GenerateWithCode, index: int, values: Tensor, n: int, like: Tensor, rows: int = 10
) -> Tensor:
    """A picture of one code (Chen et al. 2016, figure 2): left to right its values, row by row different noise.

    Along a row all else is fixed, so what changes is the code's doing; row i is sample number i but for the code.

    Arguments:
        generate_with_code: noise [N, n], the code's index, its values [N] -> images [N, C, H, W] in [0, 1].
        index: which code.
        values: [V], as from `code_values`: the columns.
        n, like: as for `interpolation`.
    """
    noise = sample_noise(range(rows), n, like).repeat_interleave(len(values), 0)
    with torch.no_grad():
        return grid(generate_with_code(noise, index, values.repeat(rows)), len(values))


def _images(generate: Generate, noise: Tensor, c: Tensor | None) -> Tensor:
    with torch.no_grad():
        return generate(noise, None if c is None else c.expand(len(noise), -1))


def _members(operand: str | int, sets: Sets) -> Sequence[int]:
    return sets[operand] if isinstance(operand, str) else [operand]


def _on_shell(noise: Tensor) -> Tensor:
    """The mean [n] of noise [m, n] with its norm replaced by the mean of the m norms; of m = 1 the same numbers."""
    if len(noise) == 1:
        return noise[0]
    mean = noise.mean(0)
    return mean * (noise.norm(dim=1).mean() / mean.norm())


def _is_sample_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _operand(word: object, sets: Sets, where: str) -> str | int:
    """A sample number, or a name that a set has."""
    if isinstance(word, str):
        if _NUMBER.fullmatch(word):
            return int(word)
        if word in sets:
            return word
        if _NAME.fullmatch(word):
            close = difflib.get_close_matches(word, list(sets), n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}? " if close else ""
            known = f"there are: {', '.join(sets)}" if sets else "there are none: name them under evaluation.sets"
            raise InputError(f"{where}: no set is called {word!r}; {hint}{known}")
    elif isinstance(word, int) and _is_sample_number(word):
        return word
    raise InputError(f"{where}: {word!r} is neither a set's name nor a sample number (a whole number of at least 0)")
