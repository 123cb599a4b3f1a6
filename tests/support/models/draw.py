"""Small DRAW models for the tests of them."""

from __future__ import annotations

from functools import partial

import torch
from support.models.members import Network, Posterior, make_data, make_model
from torch import nn

from vaerun.distributions import RecurrentNormal
from vaerun.inference import Recurrent
from vaerun.models import LatentModel
from vaerun.nets import DrawDecoder, DrawEncoder
from vaerun.nets.draw import LSTMCell

WINDOWS = {"plain": (None, None), "attention": (3, 2), "reads": (2, None), "writes": (None, 3)}
"""Sizes of the reading and of the writing window."""


def network(steps: int, window: str = "attention", shape: tuple[int, ...] = (2, 4, 5)) -> Network:
    read, write = WINDOWS[window]
    return Network(
        shape,
        partial(DrawEncoder, hidden=6, read_size=read, decoder_hidden=5),
        partial(DrawDecoder, steps=steps, hidden=5, write_size=write),
    )


def draw(
    window: str = "attention",
    likelihood: str = "gaussian",
    context: str = "plain",
    *,
    steps: int = 3,
    n: int = 2,
    **other,
) -> LatentModel:
    """A model whose posterior differs from its prior and whose steps differ from each other."""
    posterior = Posterior(partial(Recurrent, steps=steps))
    model = make_model(posterior, likelihood, network(steps, window, **other), context, d=steps * n)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and name != "prior_head.weight":
                parameter.mul_(2)
    return model


def infer(model: LatentModel, b: int = 4, rows: list[int] | None = None) -> RecurrentNormal:
    x, c = make_data(model, b)
    rows = list(range(b)) if rows is None else rows
    return model.infer(model.joint(x[rows], None if c is None else c[rows]))


def copy_lstm(cell: LSTMCell, reference: nn.LSTMCell, inputs: int) -> None:
    """Our gates are i, f, o, g; torch's are i, f, g, o."""
    i, f, o, g = (slice(k * reference.hidden_size, (k + 1) * reference.hidden_size) for k in range(4))
    with torch.no_grad():
        for whole, part in (
            (reference.weight_ih, cell.gates.weight[:, :inputs]),
            (reference.weight_hh, cell.gates.weight[:, inputs:]),
            (reference.bias_ih, cell.gates.bias),
            (reference.bias_hh, torch.zeros_like(cell.gates.bias)),
        ):
            whole.copy_(torch.cat([part[i], part[f], part[g], part[o]]))


def lstm(cell: LSTMCell) -> nn.LSTMCell:
    hidden = cell.gates.out_features // 4
    inputs = cell.gates.in_features - hidden
    reference = nn.LSTMCell(inputs, hidden)
    copy_lstm(cell, reference, inputs)
    return reference
