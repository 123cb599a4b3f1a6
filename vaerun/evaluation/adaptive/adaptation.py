"""Adaptive multiple importance sampling of log p(x), whatever the model's q (AMIS; Cornuet et al. 2012).

p(x) = E_r[p(x, z) / r(z)] for any proposal r that covers the posterior. r may be found with any effort, as long as the
samples of the final estimate are new: their mean weight is then unbiased for p(x), and its logarithm a lower bound of
log p(x) in expectation. Here r is made of the posterior's modes (mode_search.py), which are searched from draws of the
prior as well as from q's mean, because no diagnostic of the weights can see a mode that no sample has visited.

Each mode has two components: a t with the mode's Laplace precision, whose heavy tails stay in every proposal, and a
normal, which is adapted. A round draws samples from the present proposal and reweights all samples so far, with the
mixture of all proposals so far as their density. Each sample is shared out among the modes; a mode's normal takes their
weighted mean and covariance, the latter drawn towards the Laplace covariance while the effective sample size is small.
The components' weights are those of expectation maximisation (Cappe et al. 2008), mixed with their initial values.

An image is done when its weights have had a k-hat of at most RELIABLE, and a sufficient effective sample size, in two
successive rounds (a single k-hat may be low by chance), or when they are nearly equal, of which k-hat, a model of the
weights' tail, says little. If they are both, the proposal stays as it is, as adaptation would only add noise. An image
that is not done after all rounds, or whose effective sample size is still insufficient after PATIENCE of them, gets its
estimate by annealing from its proposal (bridge.py). These decisions use the samples of the rounds only, so the estimate
does not depend on the outcome of its own samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vaerun.evaluation.adaptive.estimate import Noise, log_density, rounding
from vaerun.evaluation.adaptive.mixture import Components, Mixture, wide_dtype
from vaerun.evaluation.adaptive.mode_search import LogDensity, Modes
from vaerun.evaluation.likelihood.importance import effective_sample_size
from vaerun.evaluation.likelihood.pareto import pareto_k, tail_length
from vaerun.nets.init import check_integer
from vaerun.tracking.monitor import SILENT, Monitor

RELIABLE = 0.5  # k-hat of the rounds' weights up to which an image is done: a margin below the limit of 0.7
EFFICIENT = 0.05  # effective share of the samples of all rounds at or above which an image may be done
EQUAL = 0.5  # effective share at or above which weights count as nearly equal, whatever their k-hat
INFLATION = 1.2  # of the adapted covariances: too narrow a normal gives heavy weights, too wide a one many small ones
SHRINKAGE = 3.0  # effective samples per dimension at which the adapted covariance is half the Laplace covariance
INITIAL_SHARE = 0.1  # of the initial component weights in the adapted ones
MODE_FLOOR = 0.02  # smallest initial weight of a mode, before normalisation: its Laplace evidence may be wrong
EM_STEPS = 3
PATIENCE = 8  # rounds in which an image must become efficient: further ones help slowly, and annealing helps more
CHAIN_SAMPLES = 40  # samples of the estimate per chain of annealing
MIN_CHAINS = 25  # the fewest for which a k-hat is defined, and some


@dataclass(frozen=True)
class Amis:
    """Settings of adaptive multiple importance sampling.

    Attributes:
        samples: K of the final estimate.
        temperatures: of annealing from the proposal, for images whose weights are not reliable after all rounds.
        starts: mode searches from draws of the prior in each of the first two blocks; further blocks double the number.
        max_starts: draws of the prior after which an image gets no further block.
        rounds: of adaptation, for every image whose proposal is not good as it is.
        max_rounds: for images whose weights are efficient, but not reliable yet.
        round_samples: samples per round.

    Raises InputError, naming the key, for a value out of range.
    """

    samples: int = 2000
    temperatures: int = 100
    starts: int = 8
    max_starts: int = 128
    rounds: int = 2
    max_rounds: int = 12
    round_samples: int = 500

    def __post_init__(self) -> None:
        for field in fields(self):
            check_integer(f"evaluation.amis.{field.name}", getattr(self, field.name), 1)

    @property
    def chains(self) -> int:
        """K of the annealing, enough for a k-hat: a chain's weight varies less than a sample's."""
        return max(self.samples // CHAIN_SAMPLES, min(self.samples, MIN_CHAINS))


def initial_mixture(modes: Modes) -> Mixture:
    """A t and a normal at each mode, with the Laplace precision; the modes by evidence, none below MODE_FLOOR."""
    found = modes.log_evidence > -math.inf
    share = torch.softmax(modes.log_evidence.to(wide_dtype(modes.mean.device)), 1).nan_to_num(nan=0)
    # An image without any usable mode keeps the first one: a standard normal's.
    found[:, 0] = True
    share = torch.where(found, share + MODE_FLOOR, 0.0)
    share = share / share.sum(1, keepdim=True)
    heavy = torch.arange(2 * modes.mean.shape[1], device=share.device) < modes.mean.shape[1]
    components = Components(modes.mean.repeat(1, 2, 1), modes.cholesky.repeat(1, 2, 1, 1), heavy)
    return Mixture(components, torch.cat([share, share], 1) / 2)


class _Rounds:
    """The samples of all rounds of a batch, with their log-densities under every component that was ever used."""

    def __init__(self, initial: Mixture) -> None:
        self.initial, self.mixture, self.modes = initial, initial, len(initial.components) // 2
        self.bank = initial.components
        self.z: Tensor | None = None  # [B, N, d]
        # Of the samples, set by the first round: [B, N], [B, N] and [B, N, C].
        self.log_f = self.log_w = self.log_components = initial.weight
        self.drawn = torch.zeros_like(initial.weight)  # samples by component of the bank, in expectation [B, C]
        # Whether the weights were reliable in the last round, and are efficient.
        self.reliable = self.efficient = initial.weight.new_zeros(len(initial.weight), dtype=torch.bool)

    def select(self, rows: Tensor) -> _Rounds:
        """Those of images `rows` [M]."""
        view = _Rounds(self.initial.select(rows))
        view.mixture, view.bank, view.drawn = self.mixture.select(rows), self.bank.select(rows), self.drawn[rows]
        view.reliable, view.efficient = self.reliable[rows], self.efficient[rows]
        if self.z is not None:
            view.z, view.log_f, view.log_w = self.z[rows], self.log_f[rows], self.log_w[rows]
            view.log_components = self.log_components[rows]
        return view

    def draw(self, target: LogDensity, noise: Tensor, chunk: int, monitor: Monitor) -> None:
        """Add a round from noise [B, n, d + EXTRA_NOISE]."""
        z = self.mixture.sample(noise)
        log_f, log_components = log_density(target, z, chunk, monitor), self.bank.log_prob(z)
        if self.z is None:
            self.z, self.log_f, self.log_components = z, log_f, log_components
        else:
            self.z, self.log_f = torch.cat([self.z, z], 1), torch.cat([self.log_f, log_f], 1)
            self.log_components = torch.cat([self.log_components, log_components], 1)
        # The mixture's components are the t ones and the latest normals, the bank's last ones.
        j = self.modes
        self.drawn[:, :j] += z.shape[1] * self.mixture.weight[:, :j]
        self.drawn[:, -j:] += z.shape[1] * self.mixture.weight[:, j:]
        self.log_w = self._log_weights()

    def _log_weights(self) -> Tensor:
        """log f - log of the mixture of all proposals so far, [B, N] nats."""
        share = self.drawn / self.drawn.sum(1, keepdim=True)
        return self.log_f - torch.logsumexp(self.log_components + share.log().unsqueeze(1), -1)

    def adapt(self) -> None:
        """Adapt the normals and the weights of the components to the samples so far."""
        assert self.z is not None
        j, z, initial = self.modes, self.z, self.initial
        log_share = self.log_w - torch.logsumexp(self.log_w, 1, keepdim=True)
        # Clipped at sqrt(N) times their mean (Ionides 2008).
        w = torch.softmax(log_share.clamp(max=-0.5 * math.log(z.shape[1])), 1).to(z.dtype)
        w = torch.where(w.isfinite(), w, 1 / z.shape[1])  # no sample has a weight
        normals = self._moments(w)
        log_normals = normals.log_prob(z)
        # The components' densities in units of the largest one at each sample.
        log_densities = torch.cat([self.log_components[..., :j], log_normals], -1)
        density = (log_densities - log_densities.amax(-1, keepdim=True)).to(z.dtype).exp()
        weight = start = initial.weight.to(z.dtype)
        for _ in range(EM_STEPS):
            mixture = (density @ weight.unsqueeze(-1)).squeeze(-1).clamp(min=torch.finfo(z.dtype).tiny)
            weight = weight * (density.mT @ (w / mixture).unsqueeze(-1)).squeeze(-1)
            weight = (1 - INITIAL_SHARE) * weight / weight.sum(1, keepdim=True) + INITIAL_SHARE * start
        components = _joined(initial.components.take(slice(0, j)), normals)
        self.mixture = Mixture(components, weight.to(initial.weight.dtype))
        self.bank = _joined(self.bank, normals)
        self.log_components = torch.cat([self.log_components, log_normals], -1)
        self.drawn = torch.cat([self.drawn, self.drawn.new_zeros(len(z), j)], 1)

    def _moments(self, w: Tensor) -> Components:
        """One normal per mode, with the mean and the covariance of the samples of weight w [B, N] that are nearest."""
        assert self.z is not None
        j, z, d = self.modes, self.z, self.z.shape[2]
        tiny = torch.finfo(z.dtype).tiny
        if j == 1:
            by_mode = w.unsqueeze(-1)
        else:
            prior = self.initial.weight[:, :j].log().unsqueeze(1)
            by_mode = w.unsqueeze(-1) * torch.softmax((self.log_components[..., :j] + prior), -1).to(z.dtype)
        total = by_mode.sum(1, keepdim=True)
        by_mode = by_mode / total.clamp(min=tiny)
        ess = torch.where(total > 0, 1 / by_mode.square().sum(1, keepdim=True).clamp(min=tiny), 0.0)
        trust = (ess / (ess + SHRINKAGE * d)).unsqueeze(-1)  # [B, 1, J, 1]
        eye = torch.eye(d, dtype=z.dtype, device=z.device)
        means, factors = [], []
        for k in range(j):
            laplace, weight = self.initial.components.cholesky[:, k], by_mode[..., k : k + 1]
            mean = torch.where(total[..., k] > 0, (weight * z).sum(1), self.initial.components.mean[:, k])
            white = (z - mean.unsqueeze(1)) @ laplace  # the Laplace covariance is the identity in these coordinates
            covariance = INFLATION * torch.lerp(eye, (weight * white).mT @ white, trust[:, :, k])
            # With an upper factor, S = U U', the precision C S^-1 C' has the lower factor C U^-T.
            upper, info = torch.linalg.cholesky_ex(covariance.flip(-1, -2))
            factor = torch.linalg.solve_triangular(upper.flip(-1, -2), laplace.mT, upper=True).mT
            usable = (info == 0) & factor.isfinite().all(-1).all(-1)
            means.append(mean)
            factors.append(torch.where(usable[:, None, None], factor, laplace))
        return Components(torch.stack(means, 1), torch.stack(factors, 1), self.bank.heavy.new_zeros(j))

    def judge(self) -> tuple[Tensor, Tensor]:
        """Whether the proposal is good as it is, and whether it needs no further round once adapted: [B] bool."""
        n, before = self.log_w.shape[1], self.reliable
        ess = effective_sample_size(self.log_w.T)
        self.efficient = ess >= EFFICIENT * n
        if tail_length(n):
            largest = torch.topk(self.log_w, tail_length(n) + 1, sorted=False).values.T
            k = pareto_k(largest, n, rounding(self.log_f, self.log_w, self.bank.mean.dtype))
            self.reliable = (k <= RELIABLE).to(ess.device) & self.efficient
        else:  # too few samples for a k-hat
            self.reliable = torch.ones_like(before)
        equal = ess >= EQUAL * n
        return equal & self.reliable, equal | (self.reliable & before)


def _joined(first: Components, second: Components) -> Components:
    return Components(
        torch.cat([first.mean, second.mean], 1),
        torch.cat([first.cholesky, second.cholesky], 1),
        torch.cat([first.heavy, second.heavy]),
    )


def adapt_proposal(
    target: LogDensity, modes: Modes, noise: Noise, amis: Amis, *, chunk: int, monitor: Monitor = SILENT
) -> tuple[Mixture, Tensor, Tensor]:
    """The proposal of each image, its number of rounds [B], and whether its weights are reliable [B] bool.

    Arguments:
        target: log f of the batch.
        modes: its modes.
        noise: of these images, d + EXTRA_NOISE numbers per sample.
        amis: the settings.
        chunk: samples evaluated at once.
        monitor: checked between chunks.
    """
    initial = initial_mixture(modes)
    components, weight = initial.components, initial.weight
    mean, cholesky, weight = components.mean.clone(), components.cholesky.clone(), weight.clone()
    active = torch.arange(len(mean), device=mean.device)
    count, reliable = torch.zeros_like(active), torch.zeros_like(active, dtype=torch.bool)
    rounds, here, here_noise = _Rounds(initial), target, noise
    for number in range(amis.max_rounds):
        rounds.draw(here, here_noise(f"amis/round/{number}", amis.round_samples).transpose(0, 1), chunk, monitor)
        count[active] += 1
        good, done = rounds.judge()
        used = rounds.mixture
        rounds.adapt()
        mixture = rounds.mixture
        keep = good.unsqueeze(-1)
        mean[active] = torch.where(keep.unsqueeze(-1), used.components.mean, mixture.components.mean)
        cholesky[active] = torch.where(keep[..., None, None], used.components.cholesky, mixture.components.cholesky)
        weight[active] = torch.where(keep, used.weight, mixture.weight)
        reliable[active] = done
        left = ~(done if number + 1 >= amis.rounds else good)
        if number + 1 >= max(PATIENCE, amis.rounds):
            left &= rounds.efficient
        if not bool(left.any()):
            break
        if not bool(left.all()):
            active = active[left]
            rows = left.nonzero()[:, 0]
            rounds, here, here_noise = rounds.select(rows), target.select(active), noise.select(active)
    return Mixture(Components(mean, cholesky, components.heavy), weight), count, reliable
