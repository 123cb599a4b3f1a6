"""The latent space against linear-Gaussian models, whose posteriors are known; the linear probe."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.models.members import CONTEXTS, POSTERIORS, TRANSFORMS, Posterior, image_noise, make_model
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vaerun.data.dataset import Split
from vaerun.errors import InputError, Interrupted
from vaerun.evaluation.latent import probe
from vaerun.evaluation.latent.probe import linear_probe, probe_latents
from vaerun.evaluation.latent.statistics import latent_statistics
from vaerun.inference import Laplace
from vaerun.models import LatentModel
from vaerun.signals import ShutdownSignal
from vaerun.tracking.monitor import Monitor

EXACT = Posterior(partial(Laplace, steps=1, damping="none"))


def make_split(model: LatentModel, n: int = 20, labelled: bool = True) -> Split:
    """Grey images of the model's shape, of 3 classes."""
    images = torch.randint(0, 256, (n, *model.image_shape), generator=torch.Generator().manual_seed(4))
    labels = torch.arange(n) % 3 if labelled else None
    return Split("test", images.to(torch.uint8), labels, 3 if labelled else 0, TRANSFORMS["plain"], False)


class Sampled(nn.Module):
    """An inference whose q keeps its moments to itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, joint):
        q = self.inner(joint)
        q.exact_moments = False
        return q


# -- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", CONTEXTS)
def test_linear_gaussian_posteriors_are_found(context):
    # Posterior of z under x = Wz + (b, label) + noise: precision P + W'W / s2, by plain algebra.
    model = make_model(EXACT, network="linear", context=context)
    split = make_split(model)
    batch = split.batch(0, 20)
    with torch.no_grad():
        c = batch.c.double() if model.classes else None
        weight, s2 = model.decoder.affine.weight, model.likelihood.log_variance.exp()
        w, bias = weight[:, :3], model.decoder.affine.bias + model.offset.flatten()
        bias = bias if c is None else bias + c @ weight[:, 3:].mT
        prior = model.prior(c)
        m0 = torch.zeros(20, 3) if prior is None else prior.mean
        v0 = torch.ones(20, 3) if prior is None else prior.variance
        covariance = torch.linalg.inv(torch.diag_embed(1 / v0) + w.mT @ w / s2)
        mean = (covariance @ (m0 / v0 + (batch.x.flatten(1) - bias) @ w / s2).unsqueeze(-1)).squeeze(-1)
        variance = covariance.diagonal(dim1=1, dim2=2)
    result = latent_statistics(model, split, seed=0)
    assert result.samples == 0
    for value, truth in ((result.means, mean), (result.variances, variance), (result.prior_means, m0)):
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, truth, atol=1e-9, rtol=0)
    kl = kl_divergence(Normal(mean, variance.sqrt()), Normal(m0, v0.sqrt())).mean(0)
    torch.testing.assert_close(result.kl, kl, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.mean_variances, (mean - mean.mean(0)).square().mean(0), atol=1e-9, rtol=0)
    assert torch.equal(result.labels, torch.arange(20) % 3)
    assert ((result.draws - mean).square() / variance).mean() == pytest.approx(1, abs=5 * (2 / 60) ** 0.5)


def test_units_that_sleep_are_counted():
    # Means with variances 0, 0.0099, 0.0101 and 4 over images; the limit is 0.01.
    model = make_model("amortised", network="linear", d=4)
    split = make_split(model, 30)
    level = split.batch(0, 30).x.flatten(1)[:, 0]
    encoder = nn.Flatten()
    encoder.forward = lambda x, c=None: (
        (x.flatten(1)[:, :1] - (level - model.mean[0, 0, 0]).mean()) / level.std(correction=0)
    )
    model.inference.encoder = encoder
    model.inference.mean, model.inference.log_variance = nn.Linear(1, 4), nn.Linear(1, 4)
    with torch.no_grad():
        for head in (model.inference.mean, model.inference.log_variance):
            head.weight.zero_()
            head.bias.zero_()
        model.inference.mean.weight[:, 0] = torch.tensor([0.0, 0.0099, 0.0101, 4.0]).sqrt()
    result = latent_statistics(model, split, seed=0)
    torch.testing.assert_close(result.mean_variances, torch.tensor([0.0, 0.0099, 0.0101, 4.0]), atol=1e-12, rtol=0)
    assert result.active.tolist() == [False, False, True, True]
    assert result.active_units == 2
    # KL(N(m, 1) || N(0, 1)) = m^2 / 2.
    torch.testing.assert_close(result.kl, result.mean_variances / 2, atol=1e-12, rtol=0)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_kl_by_dimension_adds_up(posterior, context):
    # sum_i KL(q_i || p_i) = KL(q || p) - KL(q || prod_i q_i), for any prior that factorises.
    model = make_model(posterior, context=context)
    split = make_split(model, 8)
    batch = split.batch(0, 8)
    joint = model.joint(batch.x, batch.c.double(), image_noise(model, range(8), seed=0))
    result = latent_statistics(model, split, seed=0)
    with torch.no_grad():
        q, prior = model.infer(joint), joint.prior
        if not q.exact_moments:  # no Gaussian: nothing to add up
            assert result.samples == 500
            return
        s, d = q.covariance_matrix, q.mean - prior.mean
        scaled = (s.diagonal(dim1=1, dim2=2) + d.square()) / prior.variance
        whole = 0.5 * ((scaled - 1 + prior.variance.log()).sum(1) - torch.linalg.slogdet(s)[1])
        dependence = 0.5 * (s.diagonal(dim1=1, dim2=2).log().sum(1) - torch.linalg.slogdet(s)[1])
    torch.testing.assert_close(result.kl.sum(), (whole - dependence).mean(), atol=1e-9, rtol=0)
    assert (dependence > 1e-4).all() or (dependence.abs() < 1e-9).all()


@pytest.mark.parametrize("posterior", ["amortised", "laplace2", "semi2"])
def test_neither_batch_nor_company_changes_a_value(posterior):
    for sampled in (False, True):
        model = make_model(posterior)
        if sampled:
            model.inference = Sampled(model.inference)
        split = make_split(model, 9)
        run = partial(latent_statistics, model, split, seed=2, samples=30)
        expected = run()
        for result, n in ((run(batch=1), 9), (run(batch=4), 9), (run(images=5), 5)):
            for name in ("means", "variances", "draws"):
                torch.testing.assert_close(getattr(result, name), getattr(expected, name)[:n], atol=1e-9, rtol=0)
        assert not torch.equal(latent_statistics(model, split, seed=3).draws, expected.draws)


def test_sampled_moments_agree_with_the_closed_form():
    model = make_model("laplace2")
    split = make_split(model, 200)
    exact = latent_statistics(model, split, seed=0)
    model.inference = Sampled(model.inference)
    result = latent_statistics(model, split, seed=0, samples=400)
    assert result.samples == 400
    mean = (result.means - exact.means) / (exact.variances / 400).sqrt()
    variance = (result.variances / exact.variances - 1) / (2 / 399) ** 0.5
    for standard in (mean, variance):  # 600 standard normal errors
        assert standard.abs().max() < 5
        assert standard.square().mean() == pytest.approx(1, abs=5 * (2 / 600) ** 0.5)
    torch.testing.assert_close(result.kl - 1 / 800, exact.kl, atol=0.01, rtol=0)
    torch.testing.assert_close(result.mean_variances, exact.mean_variances, atol=5 * (0.02 / 200) ** 0.5, rtol=0.05)


def test_noise_of_sampled_moments_wakes_nobody():
    # q is the prior, whatever x: with 50 samples the means' own variance is 0.02, above the limit of 0.01.
    model = make_model("amortised")
    with torch.no_grad():
        for head in (model.inference.mean, model.inference.log_variance):
            head.weight.zero_()
            head.bias.zero_()
    model.inference = Sampled(model.inference)
    result = latent_statistics(model, make_split(model, 400), seed=0, samples=50)
    assert (result.means.var(0) > 0.012).all()
    assert result.active_units == 0
    error = 0.02 * (2 / 400) ** 0.5
    assert (result.mean_variances.abs() < 5 * error).all()
    few = latent_statistics(model, make_split(model, 400), seed=0, samples=10)  # the variances have no bias
    assert few.variances.mean() == pytest.approx(1, abs=5 * (2 / 9 / 1200) ** 0.5)
    # What is left is the bias of log v, 1 / (2 S).
    torch.testing.assert_close(result.kl, torch.full((3,), 0.01), atol=5 * 0.5 * (2 / 49 / 400) ** 0.5 / 2, rtol=0)


def test_what_cannot_be_looked_at_is_refused():
    model = make_model("amortised")
    with pytest.raises(InputError, match="samples"):
        latent_statistics(model, make_split(model), seed=0, samples=1)
    with pytest.raises(InputError, match="no images"):
        latent_statistics(model, make_split(model), seed=0, images=0)
    stop = ShutdownSignal()
    stop.signum = 15
    with pytest.raises(Interrupted):
        latent_statistics(model, make_split(model), seed=0, monitor=Monitor(stop))


# -- linear probe -----------------------------------------------------------------------------------------------------


def clusters(n: int, distance: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [n, 5] about one of three centres, and which."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return distance * torch.eye(3, 5)[labels] + torch.randn(n, 5, generator=source), labels


def test_a_probe_tells_separable_classes_apart_and_noise_not():
    separable = linear_probe(*clusters(300, 30.0), *clusters(200, 30.0, 1))
    assert (separable.accuracy, separable.train_images, separable.images) == (1.0, 300, 200)
    assert separable.warning is None
    noise = linear_probe(*clusters(3000, 0.0), *clusters(2000, 0.0, 1))
    assert noise.accuracy == pytest.approx(1 / 3, abs=5 * (2 / 9 / 2000) ** 0.5)
    # Two centres at distance a, noise N(0, I): the best linear rule is right with probability Phi(a / sqrt(2)) at 1.
    x, y = clusters(6000, 1.0)
    fresh, truth = clusters(6000, 1.0, 1)
    two = linear_probe(x[y < 2], y[y < 2], fresh[truth < 2], truth[truth < 2])
    best = float(Normal(0.0, 1.0).cdf(torch.tensor(0.5**0.5)))
    assert two.accuracy == pytest.approx(best, abs=5 * (0.25 / 4000) ** 0.5)


def test_the_baseline_is_the_class_most_frequent_in_training():
    labels, truth = torch.tensor([0, 1, 1, 1, 2, 0]), torch.tensor([1, 2, 2, 2])
    assert linear_probe(torch.randn(6, 2), labels, torch.randn(4, 2), truth).baseline == 0.25


def test_a_probe_that_has_not_converged_says_so():
    short = linear_probe(*clusters(300, 1.0), *clusters(200, 1.0, 1), iterations=1)
    assert "1 iterations" in short.warning


def test_a_probe_without_classes_is_refused():
    x, y = clusters(30, 1.0)
    for arguments, message in (
        ((x, None, x, y), "labels"),
        ((x, y, x, None), "labels"),
        ((x, torch.zeros_like(y), x, y), "two classes"),
        ((x / 0, y, x, y), "finite"),
        ((x, y, x[:0], y[:0]), "test images"),
    ):
        with pytest.raises(InputError, match=message):
            linear_probe(*arguments)


def test_posterior_means_are_probed(monkeypatch):
    # Each class has an image of its own, so the means of a linear model are three points.
    monkeypatch.setattr(probe, "TRAIN_IMAGES", 30)
    model = make_model(EXACT, network="linear")
    images = torch.randint(0, 256, (3, 1, 3, 4)).to(torch.uint8)
    train, test = (torch.arange(3).repeat_interleave(n) for n in (100, 10))  # sorted: the first 30 are of one class
    train, test = (Split("train", images[y], y, 3, TRANSFORMS["plain"], False) for y in (train, test))
    result = probe_latents(model, train, latent_statistics(model, test, seed=0), seed=0)
    assert (result.accuracy, result.train_images, result.images) == (1.0, 30, 30)
    assert result.baseline == pytest.approx(1 / 3)
    unlabelled = make_split(model, labelled=False)
    with pytest.raises(InputError, match="labels"):
        probe_latents(model, unlabelled, latent_statistics(model, unlabelled, seed=0), seed=0)
    conditional = make_model(EXACT, network="linear", context="label")
    with pytest.raises(InputError, match="conditional"):
        probe_latents(conditional, train, latent_statistics(conditional, test, seed=0), seed=0)
