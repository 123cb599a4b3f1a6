"""Pareto k-hat of importance weights: how heavy their tail is (Vehtari, Simpson, Gelman, Yao & Gabry 2024).

By the Pickands-Balkema-de Haan theorem the exceedances x = w - u of the weights over a high threshold u follow a
generalised Pareto distribution, P(x > t) = (1 + k t / sigma)^(-1/k); moments of w of order 1/k and above do not exist.
So k > 1/2 means that the weights have infinite variance, and above 0.7 a reliable estimate needs more samples than is
practical (section 3.2.4 there). u is the (M+1)-th largest of K weights, M = min(K / 5, 3 sqrt(K)) rounded up.

k and sigma are those of Zhang & Stephens (2009), an empirical Bayes estimate. With b = -k / sigma the likelihood is
maximal in k at k(b) = mean_i log(1 - b x_i), which leaves the profile l(b) = M [log(-b / k(b)) - k(b) - 1]. On a grid

    b_j = 1 / x_M - c_j / x_q,   c_j = (sqrt(m / (j - 1/2)) - 1) / 3,   j = 1..m,   m = 30 + floor(sqrt(M)),

(x_M the largest exceedance, x_q their first quartile), b is the mean of the b_j weighted by exp(l(b_j)), and k = k(b).
A prior worth 10 exceedances at k = 1/2 regularises small M: (M k + 5) / (M + 10) (Vehtari et al. 2024, appendix G).

High-dimensional weights differ by thousands of nats, so all is computed in log space: as c_j > 0, both parts of
1 - b_j x = (1 - x / x_M) + c_j x / x_q are positive, and the larger of 1 and x / x_q is factored out of the logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaerun.errors import InputError

MIN_TAIL = 5  # exceedances needed for a fit
PRIOR, PRIOR_WEIGHT = 0.5, 10  # the prior's k, and its weight in exceedances


def tail_length(samples: int) -> int:
    """M, the number of tail weights fitted among K = `samples`; 0 if that is fewer than 5 (K <= 20)."""
    tail = math.ceil(min(samples / 5, 3 * math.sqrt(samples)))
    return tail if tail >= MIN_TAIL else 0


def keep_largest(largest: Tensor, new: Tensor, count: int) -> Tensor:
    """The `count` largest of two sets per image, unordered: [m, B] and [n, B] -> [min(m + n, count), B]."""
    both = torch.cat([largest, new])
    if len(both) <= count:
        return both
    rows = both.mT.contiguous()  # ten times as fast on a CPU as along the first dimension
    return torch.topk(rows, count, sorted=False).values.mT


def pareto_k(largest: Tensor, samples: int, rounding: Tensor | float = 0.0) -> Tensor:
    """k-hat [B] (float64) of each image's importance weights.

    Arguments:
        largest: the M + 1 largest log-weights of each image, M = tail_length(samples), in any order: [M + 1, B] nats.
            A constant added to an image's log-weights changes nothing.
        samples: K, the number of all weights.
        rounding: nats, [B] or a scalar: log-weights that differ by no more count as equal.

    The standard error of k-hat is about (1 + k) / sqrt(M). It is NaN if K is too small for a fit (M < 5) or a weight
    is NaN; -inf if the largest weights are all equal, as with an exact posterior, so that there is no tail; and inf
    if fewer than 5 of them exceed the others, which are equal: there is no fit, and the estimate is not reliable.

    Raises InputError unless `largest` has M + 1 rows.
    """
    tail = tail_length(samples)
    if largest.device.type == "mps":  # Apple's GPUs have no float64
        largest, rounding = largest.cpu(), torch.as_tensor(rounding).cpu()
    if not tail:
        return largest.new_full(largest.shape[1:], math.nan, dtype=torch.float64)
    if len(largest) != tail + 1:
        raise InputError(f"pareto_k needs the {tail + 1} largest log-weights of {samples} samples, got {len(largest)}")
    ordered = largest.double().sort(0).values
    threshold, weights = ordered[0], ordered[1:]
    log_x = torch.where(weights == threshold, -math.inf, weights + torch.log(-torch.expm1(threshold - weights)))
    top = log_x[-1]
    # Ties with the threshold are not exceedances: the other n are fitted.
    n = (log_x != -math.inf).sum(0)
    quartile = (tail - n + (n / 4 + 0.5).long() - 1).clamp(0, tail - 1)
    scale = log_x.gather(0, quartile[None])[0]

    log_y = log_x - scale
    factor = log_y.clamp(min=0)  # factored out of the logarithm
    below_top, y = -torch.expm1(log_x - top) * torch.exp(-factor), torch.exp(log_y - factor)
    m = 30 + int(math.sqrt(tail))
    c = (torch.sqrt(m / (torch.arange(m, dtype=torch.float64, device=top.device) + 0.5)) - 1) / 3

    # A tie adds log 1 = 0 to every sum.
    k = (torch.log(below_top + c[:, None, None] * y).sum(1) + factor.sum(0)) / n  # [m, B]
    minus_b = c[:, None] - torch.exp(scale - top)  # -b in units of the scale
    # At b = 0 (an exponential tail) k vanishes too, and -b / k is one over the mean.
    ratio = torch.where(minus_b.abs() < 1e-8, n / log_y.exp().sum(0), minus_b / k)
    weight = torch.softmax(n * (ratio.log() - k), 0)

    fitted = (torch.log(below_top + (weight * c[:, None]).sum(0) * y).sum(0) + factor.sum(0)) / n
    regularised = torch.where(n < MIN_TAIL, math.inf, (n * fitted + PRIOR_WEIGHT * PRIOR) / (n + PRIOR_WEIGHT))
    spread = weights[-1] - threshold
    equal = (spread <= rounding) & (spread < math.inf)  # an infinite log-likelihood has infinite rounding
    return torch.where(equal | (top == -math.inf), -math.inf, regularised)
