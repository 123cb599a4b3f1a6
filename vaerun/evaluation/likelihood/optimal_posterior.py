"""q*: the member of q's family with the largest ELBO for an image, by stochastic optimisation (Cremer et al. 2018).

Local parameters of each image (`local_parameters()`) are optimised by Adam on its ELBO, with the model fixed. A
Gaussian's gradient is that of `stl`, whose noise vanishes as q* approaches the posterior.

Every `window` steps an image's ELBO is validated on fixed noise that the search does not see. The search retains the
latest parameters within `tolerance` of the best value, because the best ones have overfitted that noise. If
`patience` windows together gain no more than `tolerance`, it returns to the retained parameters with a tenth of the
learning rate; if that happens at the smallest rate, the image has converged and leaves the batch. Images do not affect
each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vaerun.distributions import LatentDistribution
from vaerun.errors import InputError
from vaerun.evaluation.likelihood.adam import PerImageAdam
from vaerun.evaluation.likelihood.importance import default_chunk
from vaerun.models import Joint, LatentModel
from vaerun.randomness import ImageNoise
from vaerun.tracking.monitor import SILENT, Monitor

LEARNING_RATE_CUTS = 2  # reductions of the learning rate, to a tenth each, before a search may end
VALIDATION_SAMPLES = 200  # their error in a difference of similar q is about the default tolerance


@dataclass(frozen=True)
class Refinement:
    """Settings of the search for q*.

    Attributes:
        samples: Monte Carlo samples per step.
        learning_rate: Adam's initial learning rate, followed by 1/10 and 1/100 of it.
        window: steps between two validations.
        tolerance: nats; the smallest gain that counts as progress. A Gaussian q* comes about as close to its optimum;
            with flows, longer searches gained about 0.05 nats more.
        patience: windows without progress before the learning rate falls or the search ends.
        max_steps: steps after which the search ends for an image that has not converged.

    Raises InputError for a value that cannot be used.
    """

    samples: int = 8
    learning_rate: float = 0.01
    window: int = 50
    tolerance: float = 0.01
    patience: int = 2
    max_steps: int = 5000

    def __post_init__(self) -> None:
        for name in ("samples", "window", "patience", "max_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"evaluation.gap.{name} must be an integer of at least 1, got {value}")
        for name in ("learning_rate", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise InputError(f"evaluation.gap.{name} must be a number above 0, got {value}")


def log_weights(joint: Joint, q: LatentDistribution, noise: Tensor, detached: bool = False) -> Tensor:
    """log w = log p(x, z) - log q(z | x) at noise [K, B, d]: [K, B] nats.

    With `detached`, the parameters of q are constants in log q.
    """
    z, log_q = q.transform(noise)
    if detached:
        log_q = q.detach().log_prob(z)
    wide = torch.float32 if z.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return joint.log_likelihood(z).to(wide) + joint.prior.log_prob(z).to(wide) - log_q


def split_noise(noise: Tensor) -> tuple[Tensor, ...]:
    """Split noise [K, B, d] along K into chunks that suit the device."""
    return noise.split(max(1, default_chunk(noise.device) // noise.shape[1]))


def elbo(joint: Joint, q: LatentDistribution, noise: Tensor) -> Tensor:
    """The ELBO at noise [K, B, d]: [B] nats."""
    return torch.cat([log_weights(joint, q, part) for part in split_noise(noise)]).mean(0)


@dataclass(frozen=True)
class OptimalPosterior:
    """q* with batch shape [B], the optimisation steps taken [B], and whether the search has converged, [B] bool."""

    q: LatentDistribution
    steps: Tensor
    converged: Tensor


def optimise_posterior(
    model: LatentModel,
    x: Tensor,
    c: Tensor | None,
    rows: Tensor,
    refinement: Refinement,
    *,
    seed: int,
    modes: tuple[Tensor, Tensor] | None = None,
    monitor: Monitor = SILENT,
) -> OptimalPosterior:
    """The member of q's family with the largest ELBO that a search from one start finds, for each image.

    Arguments:
        model: in evaluation mode.
        x, c: images [B, C, H, W] and one-hot labels [B, classes] or None.
        rows: indices of the images within their split, [B], which key their noise.
        refinement: settings of the search.
        seed: of the noise.
        modes: start at these modes [B, d], with the Cholesky factors of the precisions there [B, d, d]; None: at q.
        monitor: checked before every step.

    Raises InputError for a posterior that cannot be reparameterised.
    """

    def restricted(active: Tensor) -> tuple[Joint, LatentDistribution]:
        noise = ImageNoise(seed, rows[active.cpu()].tolist(), model.latent_dim, model.mean)
        joint = model.joint(x[active], None if c is None else c[active], noise)
        q = model.infer(joint)
        if modes is not None:
            q = cast(LatentDistribution, q.at_mode(modes[0][active], modes[1][active]))
        return joint.detach(), q

    window, samples = refinement.window, refinement.samples
    with torch.no_grad():
        active = torch.arange(len(x), device=x.device)
        joint, q = restricted(active)
        if not q.has_rsample:
            raise InputError(f"evaluation.gap needs a reparameterised posterior, which {type(q).__name__} is not")
        validation_noise = joint.noise("gap/judging", VALIDATION_SAMPLES)
        value = elbo(joint, q, validation_noise)
        best, reference = value.clone(), value.clone()  # the best so far; its value when progress was last seen
        retained, build_retained = q.local_parameters()
        leaves, build = q.local_parameters()
        adam = PerImageAdam(leaves, torch.full_like(x[:, 0, 0, 0], refinement.learning_rate))
        stalled, cuts, steps = (torch.zeros_like(active) for _ in range(3))
        converged = torch.zeros_like(active, dtype=torch.bool)
        for start in range(0, refinement.max_steps, window):
            block = joint.noise(f"gap/search/{start // window}", window * samples).unflatten(0, (window, samples))
            for noise in block[: refinement.max_steps - start]:
                monitor.check()
                with torch.enable_grad():
                    log_w = log_weights(joint, build(), noise, detached=q.exact_moments)
                    # The gradient of a sum over images: each image affects its own leaves only.
                    gradients = torch.autograd.grad(log_w.mean(0).sum(), leaves)
                adam.step(gradients)
            steps[active] = min(start + window, refinement.max_steps)

            value = elbo(joint, build(), validation_noise[:, active])
            good = value > best[active] - refinement.tolerance
            best[active[good]] = torch.maximum(best[active[good]], value[good])
            for retained_leaf, leaf in zip(retained, leaves, strict=True):
                retained_leaf[active[good]] = leaf[good]
            improved = best[active] > reference[active] + refinement.tolerance
            stalled[active] = torch.where(improved, 0, stalled[active] + 1)
            stuck = stalled[active] >= refinement.patience
            reference[active] = torch.where(improved | stuck, best[active], reference[active])
            done, cut = stuck & (cuts[active] == LEARNING_RATE_CUTS), stuck & (cuts[active] < LEARNING_RATE_CUTS)
            converged[active[done]] = value[done].isfinite()
            cuts[active[cut]] += 1
            stalled[active[cut]] = 0
            adam.restart(cut, [leaf[active[cut]] for leaf in retained])
            if done.any():
                active = active[~done]
                if not len(active):
                    break
                joint, q = restricted(active)
                leaves, build = q.local_parameters()
                adam.select(~done, leaves)
        return OptimalPosterior(build_retained().detach(), steps, converged)
