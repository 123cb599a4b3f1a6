"""Optimisers of an objective's phases, and one update of one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vaerun.distributed.collectives import Ranks
from vaerun.objectives import Phase
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.settings import TrainSettings


def make_optimisers(phases: dict[str, Phase], settings: TrainSettings) -> dict[str, torch.optim.Optimizer]:
    """One Adam per phase; each group remembers its base rate and its betas.

    On a GPU rates and counts of steps live there, so that a recorded step can be replayed under a schedule.
    """
    own_rates = {
        "variance": settings.variance_learning_rate,
        "discriminator": settings.discriminator_learning_rate,
    }
    own_betas = {"discriminator": settings.discriminator_betas}

    def options(group: str) -> dict[str, Any]:
        rate, betas = own_rates.get(group), own_betas.get(group)
        rate = settings.learning_rate if rate is None else rate
        return {"lr": rate, "base_lr": rate, "betas": settings.betas if betas is None else betas}

    found: dict[str, torch.optim.Optimizer] = {}
    for name, phase in phases.items():
        groups = [{"params": p, **options(g)} for g, p in phase.groups.items() if p]
        on_gpu = all(p.is_cuda for group in groups for p in group["params"])
        found[name] = torch.optim.Adam(groups, fused=True, capturable=on_gpu)
        if on_gpu:
            for group in found[name].param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)
    return found


def set_rates(optimiser: torch.optim.Optimizer, scale: float) -> None:
    """Each group's learning rate, as a part of its base rate."""
    for group in optimiser.param_groups:
        rate = group["base_lr"] * scale
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # where it is: recorded steps know the place
        else:
            group["lr"] = rate


def update(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    metrics: dict[str, Tensor],
    scale: float | None,
    clip_norm: float | None,
    guard: FiniteGuard,
    step: int | Tensor,
    ranks: Ranks | None = None,
) -> Tensor:
    """One optimiser step, unless loss or gradient is not finite; returns the gradient's norm before clipping.

    Loss and metrics are this process's share of the batch; gradient and decision are of all of it. `scale` is the
    schedule's, None where the rates are set already.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if ranks is not None:
        loss = ranks.reduce(parameters, loss)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    if scale is not None:
        set_rates(optimiser, scale)
    bad = guard.check_update(step, loss, norm, metrics)
    if guard.on_device:
        # The fused kernel leaves parameters and moments alone where this is 1: no transfer to the host is needed.
        optimiser.grad_scale, optimiser.found_inf = None, bad.float()  # type: ignore[attr-defined]
    optimiser.step()
    return norm
