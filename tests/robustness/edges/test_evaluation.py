"""Evaluation where weights, features or likelihoods are constant, zero, infinite or single: right numbers, or none."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from support.models.annealing import make_split, noise_of
from support.models.members import Posterior, make_data, make_model
from torch import Tensor
from unit.evaluation.likelihood.test_pareto import Prescribed

from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.errors import InputError
from vaerun.evaluation.latent.statistics import latent_statistics
from vaerun.evaluation.likelihood.annealed import (
    Annealing,
    anneal,
    annealed_importance_sampling,
    bidirectional,
    tune_step_sizes,
)
from vaerun.evaluation.likelihood.importance import (
    effective_sample_size,
    importance_statistics,
    log_likelihood,
    unreliable_share,
)
from vaerun.evaluation.likelihood.pareto import pareto_k, tail_length
from vaerun.evaluation.likelihood.parzen import choose_parzen_variance, parzen_log_likelihood
from vaerun.evaluation.samples.sample_quality import diversity, frechet_distance, prdc
from vaerun.inference import Laplace
from vaerun.models import LatentModel
from vaerun.models.ppca import exact_log_likelihood

FEW = Annealing(temperatures=8, chains=4, adapt=False)
EXACT = Posterior(partial(Laplace, steps=1, damping="none"))


def linear(posterior: str | Posterior = "amortised", d: int = 2, **options) -> LatentModel:
    return make_model(posterior, network="linear", d=d, **options)


# -- importance weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("samples", [1, 20, 21, 100_000])
def test_one_and_very_many_samples(samples, images):
    model = linear(EXACT)
    x, _ = make_data(model, images)
    with torch.no_grad():
        joint = model.joint(x)
        result = importance_statistics(joint, model.infer(joint), samples)
    torch.testing.assert_close(result["log_likelihood"], exact_log_likelihood(model, x), atol=1e-8, rtol=0)
    torch.testing.assert_close(result["elbo"], result["log_likelihood"], atol=1e-8, rtol=0)
    torch.testing.assert_close(
        result["effective_sample_size"], torch.full((images,), float(samples)), rtol=1e-8, atol=0
    )
    assert result["pareto_k"].isnan().all() if samples <= 20 else (result["pareto_k"] == -math.inf).all()


def test_very_many_samples_of_a_posterior_that_is_off():
    model = linear()
    with torch.no_grad():
        model.likelihood.log_variance.fill_(2.0)  # the exact posterior is then near the prior ...
        model.inference.log_variance.bias.fill_(0.5)  # ... and this one wider
    x, _ = make_data(model, 2)
    result = log_likelihood(model, x, samples=100_000)
    torch.testing.assert_close(result, exact_log_likelihood(model, x), atol=0.02, rtol=0)


@pytest.mark.parametrize("samples", [1, 30, 1300])
def test_weights_that_are_infinite_or_missing(samples):
    """Images whose weights are all zero; all zero but one; one infinite; one no number; all equal."""
    log_w = torch.full((samples, 5), -7000.0)
    log_w[:, 0] = -math.inf
    log_w[1:, 1] = -math.inf
    log_w[0, 2], log_w[0, 3] = math.inf, math.nan
    joint = Prescribed(log_w)
    result = importance_statistics(joint, joint.infer(joint), samples)
    value, size, tail = (result[k] for k in ("log_likelihood", "effective_sample_size", "pareto_k"))
    assert value[0] == -math.inf
    assert size[0].isnan()  # no weight at all
    torch.testing.assert_close(value[1], torch.tensor(-7000 - math.log(samples)))
    torch.testing.assert_close(size[1], torch.tensor(1.0))
    assert value[2] == math.inf
    assert value[3].isnan()
    torch.testing.assert_close(value[4], torch.tensor(-7000.0))
    torch.testing.assert_close(size[4], torch.tensor(float(samples)))
    assert result["elbo"][:4].isfinite().tolist() == [False, samples == 1, False, False]
    if samples > 20:
        # One weight that carries all is nothing to rely on, and what is no number never counts as reliable.
        assert tail[1] == math.inf
        assert tail[4] == -math.inf
        assert not (tail[2:4] < 0.7).any()


def test_tails_of_weights_that_are_infinite_or_no_numbers():
    rows = tail_length(100) + 1
    log_weights = torch.randn(rows, 3)
    log_weights[-1, 0], log_weights[2, 1] = math.inf, math.nan
    k = pareto_k(log_weights, 100)
    assert k[:2].isnan().all()
    assert k[2].isfinite()
    assert math.isnan(unreliable_share(k[:2]))


@pytest.mark.parametrize("level", [0, 255])
def test_the_logits_of_black_and_white_images_are_exact(level, single_precision):
    """log|det| of single precision beside that of double precision at the same x."""
    pixels, transform = torch.full((50, 1, 4, 4), level, dtype=torch.uint8), Transform(dequantize=True, logit=True)
    for u in (torch.rand(50, 1, 4, 4), torch.zeros(50, 1, 4, 4), torch.full((50, 1, 4, 4), 1 - 2.0**-24)):
        x, log_det = transform(pixels, lambda u=u: u, False)
        assert x.isfinite().all()
        wide = 1e-6 + (1 - 2e-6) * (pixels.double() + u.double()) / 256
        exact = (math.log(1 - 2e-6) - wide.log() - torch.log1p(-wide)).flatten(1).sum(1)
        rounding = (2.0**-23 / torch.minimum(wide, 1 - wide)).flatten(1).sum(1)  # of x, as it moves log(x (1 - x))
        assert ((log_det.double() - exact).abs() < rounding + 1e-5).all()
        torch.testing.assert_close(transform.to_unit(x), (pixels + u) / 256, atol=3e-7, rtol=0)


# -- annealing --------------------------------------------------------------------------------------------------------


def flat(likelihood: str) -> LatentModel:
    """A decoder that ignores z: log p(x | z) = log p(x), and every chain's weight is the likelihood itself."""
    model = make_model("amortised", likelihood).eval()
    with torch.no_grad():
        model.decoder.affine.weight.zero_()
    return model


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_annealing_of_a_flat_likelihood(likelihood):
    model = flat(likelihood)
    split = make_split(model, 4, Transform(binarize="fixed" if likelihood == "bernoulli" else "none"))
    batch = split.batch(0, 4)
    exact = model.joint(batch.x).log_likelihood(torch.zeros(1, 4, 3))[0].detach()
    result = annealed_importance_sampling(model, split, FEW, seed=0)
    torch.testing.assert_close(result["ais"], exact, atol=1e-9, rtol=0)
    torch.testing.assert_close(result["ais_ess"], torch.full((4,), float(FEW.chains)))
    assert (result["ais_acceptance"] > 0.3).all()
    both = bidirectional(model, FEW, images=4, seed=0)
    torch.testing.assert_close(both["bdmc_lower"], both["bdmc_upper"], atol=1e-9, rtol=0)


def test_annealing_where_no_sample_of_the_prior_has_a_likelihood(single_precision):
    """log p(x | z) beyond single precision counts as no weight: -inf, which is no mean, and never NaN."""
    model = make_model("amortised").eval()
    with torch.no_grad():
        model.likelihood.log_variance.fill_(-87.0)
        model.decoder.affine.bias.add_(10.0)
    x, _ = make_data(model, 3)
    joint, noise = model.joint(x), noise_of(model, 3)
    log_weight, acceptance = anneal(joint, noise, FEW, tune_step_sizes(joint, noise, FEW))
    assert (log_weight == -math.inf).all()
    assert acceptance.isfinite().all()
    assert effective_sample_size(log_weight).tolist() == [0.0] * 3


# -- samples ----------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_constant_features():
    a, b = torch.full((5, 3), 2.0), torch.full((7, 3), -1.0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, b) == pytest.approx(27)
    spread = torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]).repeat(50, 1)  # variance 100/99 along one axis
    assert frechet_distance(spread, torch.zeros(4, 3)) == pytest.approx(100 / 99)
    assert frechet_distance(1e8 * spread, 1e8 * spread) == pytest.approx(0, abs=1e4)  # 1e-12 of 1e16


def test_metrics_of_constant_features_and_images():
    constant, varied = torch.ones(10, 3), torch.randn(10, 3)
    same = prdc(constant, constant, neighbours=3)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    apart = prdc(varied, constant + 100, neighbours=3)
    assert (apart.precision, apart.recall, apart.coverage) == (0, 0, 0)
    images = torch.rand(10, 1, 4, 4)
    assert diversity(torch.zeros(10, 1, 4, 4), images) == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="are the same"):
        diversity(images, torch.zeros(10, 1, 4, 4))


@pytest.mark.parametrize("variance", [1e-6, 1e-2, 1e6])
def test_parzen_windows_of_one_sample_and_of_copies(variance):
    sample, images = torch.rand(1, 1, 4, 4), torch.rand(3, 1, 4, 4)
    exact = torch.distributions.Normal(sample, variance**0.5).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(parzen_log_likelihood(sample, images, variance), exact, rtol=1e-9, atol=1e-6)
    copies = sample.expand(50, -1, -1, -1)
    torch.testing.assert_close(parzen_log_likelihood(copies, images, variance), exact, rtol=1e-9, atol=1e-6)
    at_itself = parzen_log_likelihood(sample, sample, variance)
    torch.testing.assert_close(at_itself, torch.tensor([-8 * math.log(2 * math.pi * variance)]), atol=1e-6, rtol=0)


def test_parzen_window_chosen_on_images_that_are_samples():
    """The density at a sample grows without bound as the window narrows: the narrowest is chosen, and told of."""
    images = torch.rand(5, 1, 4, 4)
    variance, values = choose_parzen_variance(images, images)
    assert variance == min(values)
    assert all(math.isfinite(v) for v in values.values())


# -- latent space -----------------------------------------------------------------------------------------------------


def narrow(log_variance: float) -> tuple[LatentModel, Split]:
    model = make_model("amortised").eval()
    with torch.no_grad():
        model.inference.log_variance.weight.zero_()
        model.inference.log_variance.bias.fill_(log_variance)
    return model, make_split(model, 5)


def kl_of(log_variance: float) -> Tensor:
    return latent_statistics(*narrow(log_variance), seed=0).kl


def test_kl_by_dimension_where_variances_vanish(single_precision):
    """What single precision can hold is right; beyond it is infinite, never a number that is wrong."""
    assert kl_of(-80.0).tolist() == pytest.approx([0.5 * 79] * 3, abs=2)
    assert (kl_of(-1000.0) == math.inf).all()
