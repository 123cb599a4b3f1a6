"""Importance sampling and validation against the exact likelihood of linear-Gaussian models, and their invariances."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from sklearn.decomposition import PCA
from support.models.members import (
    POSTERIORS,
    TRANSFORMS,
    Posterior,
    exact_marginal,
    image_noise,
    make_data,
    make_model,
)
from support.models.monitoring import RecordingMonitor
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaerun.data.dataset import Split
from vaerun.errors import InputError
from vaerun.estimators import elbo_mc, iwae, renyi
from vaerun.evaluation import Validator, importance_sampling, log_likelihood
from vaerun.evaluation.likelihood import importance
from vaerun.evaluation.likelihood.pareto import pareto_k, tail_length
from vaerun.inference import Laplace
from vaerun.models import LatentModel
from vaerun.models.ppca import exact_log_likelihood, fit_closed_form, is_linear_gaussian

EXACT = Posterior(partial(Laplace, steps=1, damping="none"))


def make_split(model: LatentModel, n: int = 11, transform: str = "plain", seed: int = 4) -> Split:
    """Grey images of the model's shape, of 3 classes."""
    images = torch.randint(0, 256, (n, *model.image_shape), generator=torch.Generator().manual_seed(seed))
    return Split("test", images.to(torch.uint8), torch.arange(n) % 3, 3, TRANSFORMS[transform], False)


def whole(split: Split) -> tuple[Tensor, Tensor]:
    """x and log|det| of all images."""
    batch = split.batch(0, len(split))
    return batch.x, batch.log_det


def check_equal(a: dict[str, Tensor], b: dict[str, Tensor], rows: slice = slice(None)) -> None:
    assert set(a) == set(b) == {"log_likelihood", "elbo", "kl", "reconstruction", "effective_sample_size", "pareto_k"}
    for name in a:
        assert a[name].dtype == torch.float64
        torch.testing.assert_close(a[name], b[name][rows], atol=1e-9, rtol=1e-9, equal_nan=True)


# -- importance sampling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("transform", ["plain", "dequantize", "logit"])
@pytest.mark.parametrize("d", [1, 3])
def test_an_exact_posterior_gives_the_exact_likelihood(samples, transform, d):
    model = make_model(EXACT, network="linear", d=d)
    split = make_split(model, transform=transform)
    x, log_det = whole(split)
    exact = exact_log_likelihood(model, x)
    result = importance_sampling(model, split, samples=samples, seed=0)
    torch.testing.assert_close(result["log_likelihood"], exact + log_det, atol=1e-8, rtol=0)
    torch.testing.assert_close(result["elbo"], exact + log_det, atol=1e-8, rtol=0)
    torch.testing.assert_close(result["reconstruction"] - result["kl"], result["elbo"], atol=1e-9, rtol=0)
    torch.testing.assert_close(log_likelihood(model, x, samples=samples), exact, atol=1e-8, rtol=0)
    assert (log_det.abs().min() > 1) == (transform == "logit")


@pytest.mark.parametrize("context", ["label", "label_prior"])
def test_an_exact_conditional_posterior_gives_the_exact_likelihood(context):
    model = make_model(EXACT, network="linear", context=context)
    x, c = make_data(model, 11)
    exact = exact_marginal(model, c, 11).log_prob(x.flatten(1)).detach()
    torch.testing.assert_close(log_likelihood(model, x, c, samples=2), exact, atol=1e-8, rtol=0)
    split = make_split(model)
    batch = split.batch(0, 11)
    exact = exact_marginal(model, batch.c.double(), 11).log_prob(batch.x.flatten(1)).detach()
    result = importance_sampling(model, split, samples=2, seed=0, chunk=8)["log_likelihood"]
    torch.testing.assert_close(result, exact, atol=1e-8, rtol=0)


def near_exact() -> LatentModel:
    """A linear-Gaussian model whose amortised posterior is the exact one, shifted, with a diagonal covariance."""
    model = make_model("amortised", network="linear", d=2)
    w, s2 = model.decoder.affine.weight, model.likelihood.log_variance.exp()
    precision = torch.eye(2) + w.mT @ w / s2
    encoder = torch.nn.Flatten()
    encoder.forward = lambda x, c=None: x.flatten(1)  # the pixels themselves
    model.inference.encoder = encoder
    model.inference.mean, model.inference.log_variance = torch.nn.Linear(12, 2), torch.nn.Linear(12, 2)
    with torch.no_grad():
        solve = torch.linalg.solve(precision, w.mT / s2)
        model.inference.mean.weight.copy_(solve)
        model.inference.mean.bias.copy_(0.1 - solve @ model.decoder.affine.bias)
        model.inference.log_variance.weight.zero_()
        model.inference.log_variance.bias.copy_(torch.linalg.inv(precision).diagonal().log() + 0.3)
    return model


def test_a_wrong_posterior_reaches_the_exact_likelihood():
    model = near_exact()
    split = make_split(model, 8)
    x, _ = whole(split)
    exact = exact_log_likelihood(model, x)
    samples = 20_000
    joint = model.joint(x)
    with torch.no_grad():
        q = model.infer(joint)
        z, log_q = q.rsample_with_log_prob((50_000,))
        weights = torch.exp(joint.log_prob(z) - log_q - exact)
    error = weights.std(0) / samples**0.5  # of log p(x), to first order
    assert (error < 0.02).all()
    result = importance_sampling(model, split, samples=samples, seed=0)
    assert ((result["log_likelihood"] - exact).abs() < 5 * error).all()
    assert (result["elbo"] < exact - 0.02).all()
    # Fewer samples: a lower bound in expectation, the ELBO at K = 1, tighter with K.
    values = {k: [importance_sampling(model, split, samples=k, seed=s) for s in range(300)] for k in (1, 5)}
    means = {}
    for k, runs in values.items():
        bounds = torch.stack([run["log_likelihood"] for run in runs])
        assert (bounds.mean(0) <= exact + 5 * bounds.std(0) / 300**0.5).all()
        means[k] = bounds.mean()
        elbos = torch.stack([run["elbo"] for run in runs])
        assert (bounds >= elbos - 1e-12).all()  # Jensen, sample by sample
    assert means[1] < means[5] < exact.mean()


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_neither_chunk_nor_company_changes_a_value(posterior, network):
    model = make_model(posterior, network=network, context="label")
    split = make_split(model, 9)  # log_likelihood takes 8 at a time
    run = partial(importance_sampling, model, split, samples=620, seed=2)
    expected = run(chunk=1)
    for chunk in (500, 1000, 1700, None):
        check_equal(run(chunk=chunk), expected)
    check_equal(run(images=3), expected, slice(3))
    batch = split.batch(0, 9)
    alone = log_likelihood(model, batch.x, batch.c, samples=620, seed=2)
    torch.testing.assert_close(alone, expected["log_likelihood"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("samples", [1, 499, 500, 501, 1200])
@pytest.mark.parametrize("transform", ["plain", "logit"])
def test_the_estimate_is_spelled_out(samples, transform):
    # All log-weights at once from the image's own noise; a sample count is a prefix of a larger one.
    model = make_model("amortised", context="plain")
    split = make_split(model, 4, transform)
    x, log_det = whole(split)
    noise = image_noise(model, range(4), seed=9)
    joint = model.joint(x)
    with torch.no_grad():
        q = model.infer(joint)
        z, _ = q.transform(torch.cat([noise(f"importance/{block}", 500) for block in range(3)])[:samples])
        reconstruction = joint.likelihood.log_prob(x, joint.decode(z)) + log_det
        kl = q.log_prob(z) - joint.prior.log_prob(z)
    weights = torch.softmax(reconstruction - kl, 0)
    largest = torch.topk(reconstruction - kl, tail_length(samples) + 1, dim=0).values
    expected = {
        "log_likelihood": torch.logsumexp(reconstruction - kl, 0) - math.log(samples),
        "elbo": (reconstruction - kl).mean(0),
        "kl": kl.mean(0),
        "reconstruction": reconstruction.mean(0),
        "effective_sample_size": 1 / weights.square().sum(0),
        "pareto_k": pareto_k(largest, samples),
    }
    result = importance_sampling(model, split, samples=samples, seed=9)
    check_equal(result, expected)
    assert result["pareto_k"].isfinite().all() == (samples > 20)


@pytest.mark.parametrize(
    ("samples", "images", "batches", "told"),
    [(1200, 16, 4, [1200 * 16]), (400, 10, 2, [400 * 10]), (1200, 4, 1, [1200 * 4]), (400, 5, 1, [])],
)
def test_the_time_is_foretold(monkeypatch, samples, images, batches, told):
    """A clock that counts latent samples: what a block of the first images says of all is then exact."""
    model = make_model("amortised")
    split = make_split(model, 20)
    clock, compute, monitor = [0.0], importance.importance_statistics, RecordingMonitor()  # seconds

    def counted(joint, q, samples, **options):
        clock[0] += samples * len(joint.x)
        return compute(joint, q, samples, **options)

    monkeypatch.setattr(importance, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(importance, "importance_statistics", counted)
    options = {"samples": samples, "seed": 0, "images": images, "chunk": 2000}
    result = importance_sampling(model, split, **options, monitor=monitor)
    assert len(monitor.advanced) == batches
    assert monitor.forecasts == told  # not where a block is all there is
    for name, value in importance_sampling(model, split, **options).items():
        assert torch.equal(result[name], value), name


def test_another_seed_gives_other_noise_and_samples_are_checked():
    model = make_model("amortised")
    split = make_split(model)
    a, b = (importance_sampling(model, split, samples=3, seed=s)["log_likelihood"] for s in (0, 1))
    assert ((a - b).abs() > 1e-6).all()
    for samples in (0, -1):
        with pytest.raises(InputError, match="samples"):
            importance_sampling(model, split, samples=samples, seed=0)
        with pytest.raises(InputError, match="samples"):
            log_likelihood(model, whole(split)[0], samples=samples)


# -- probabilistic PCA ------------------------------------------------------------------------------------------------


def fitted(n: int = 60, d: int = 3) -> tuple[LatentModel, Tensor]:
    model = make_model(EXACT, network="linear", d=d)
    x = torch.rand(n, 12) @ torch.randn(12, 12) * 0.3 + torch.randn(12)
    x = x.reshape(n, 1, 3, 4)
    fit_closed_form(model, x.split(7))
    return model, x


def parts(model: LatentModel) -> list[Tensor]:
    return [model.decoder.affine.weight, model.decoder.affine.bias, model.likelihood.log_variance]


def test_exact_log_likelihood_is_that_of_torch():
    for d in (1, 3):
        model = make_model(EXACT, network="linear", d=d)
        x, _ = make_data(model, 6)
        exact = exact_marginal(model, None, 6).log_prob(x.flatten(1))
        torch.testing.assert_close(exact_log_likelihood(model, x), exact.detach(), atol=1e-9, rtol=0)


def test_closed_form_solution_is_a_maximum():
    model, x = fitted()
    gradients = torch.autograd.grad(exact_marginal(model, None, 1).log_prob(x.flatten(1)).mean(), parts(model))
    for gradient in gradients:
        assert gradient.abs().max() < 1e-8
    torch.testing.assert_close(model.decoder.affine.bias + model.offset.flatten(), x.flatten(1).mean(0))
    best = exact_log_likelihood(model, x).mean()
    for _ in range(20):
        other, _ = fitted()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            for parameter in parts(other):
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert exact_log_likelihood(other, x).mean() < best


def test_closed_form_solution_is_that_of_scikit_learn():
    model, x = fitted()
    pca = PCA(3).fit(x.flatten(1).numpy())
    with torch.no_grad():  # it divides by n - 1, the maximum-likelihood solution by n
        model.decoder.affine.weight.mul_((60 / 59) ** 0.5)
        model.likelihood.log_variance.add_(math.log(60 / 59))
    fresh = torch.randn(20, 12)
    expected = torch.from_numpy(pca.score_samples(fresh.numpy()))
    torch.testing.assert_close(exact_log_likelihood(model, fresh.reshape(20, 1, 3, 4)), expected, atol=1e-8, rtol=0)


def test_a_fitted_model_reaches_its_likelihood_by_importance_sampling():
    model, x = fitted()
    torch.testing.assert_close(log_likelihood(model, x, samples=1), exact_log_likelihood(model, x), atol=1e-8, rtol=0)


def test_models_without_a_closed_form_are_refused():
    x = torch.rand(60, 1, 3, 4)
    for options in ({"network": "mlp"}, {"network": "conv"}, {"likelihood": "bernoulli"}, {"context": "label"}):
        model = make_model("amortised", **{"network": "linear", **options})
        assert not is_linear_gaussian(model)
        for call in (fit_closed_form, exact_log_likelihood):
            with pytest.raises(InputError, match="linear decoder"):
                call(model, [x] if call is fit_closed_form else x)
    for d, images in ((12, 60), (13, 60), (5, 5), (5, 3)):
        with pytest.raises(InputError, match="latent_dim"):
            fit_closed_form(make_model("amortised", network="linear", d=d), [x[:images]])
    assert is_linear_gaussian(make_model("amortised", network="linear"))
    assert isinstance(exact_marginal(make_model("amortised", network="linear"), None, 1), MultivariateNormal)


# -- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("transform", ["plain", "logit"])
def test_validation_is_the_mean_over_all_images(posterior, transform):
    model = make_model(posterior, context="label")
    split = make_split(model, 7, transform)
    batch = split.batch(0, 7)
    with torch.no_grad():
        joint = model.joint(batch.x, batch.c, image_noise(model, range(7), seed=5))
        estimate = elbo_mc(joint, model.infer(joint), 1)
    terms = estimate.terms
    expected = {
        "val/elbo": float((estimate.bound + batch.log_det).mean()),
        "val/kl": float(terms["kl"].mean()),
        "val/reconstruction": float((terms["reconstruction"] + batch.log_det).mean()),
    }
    for size in (1, 3, 5, 7, 100):  # 3 and 5 leave a ragged last batch
        validator = Validator(model, split, estimator=elbo_mc, samples=3, seed=5, batch_size=size)
        result = validator()
        assert result == pytest.approx(expected, rel=1e-10)
        assert validator() == result
    other = Validator(model, split, estimator=elbo_mc, samples=3, seed=6, batch_size=7)
    assert other.selection == "val/elbo"
    assert other()["val/elbo"] != pytest.approx(result["val/elbo"])


@pytest.mark.parametrize("name", ["iwae", "renyi", "renyi_no_lower_bound"])
def test_validation_is_by_the_bound_that_is_trained(name):
    # ... of the same K samples; the ELBO of these stands beside it.
    alpha = {"renyi": 0.5, "renyi_no_lower_bound": -0.5}.get(name)
    estimator = iwae if alpha is None else partial(renyi, alpha=alpha)
    model = make_model("amortised")
    split = make_split(model, 7, "logit")
    batch = split.batch(0, 7)
    with torch.no_grad():
        joint = model.joint(batch.x, None, image_noise(model, range(7), seed=5))
        expected = estimator(joint, model.infer(joint), 4)
    for size in (2, 9, 100):
        validator = Validator(model, split, estimator=estimator, samples=4, seed=5, batch_size=size)
        result = validator()
        assert validator.selection == ("val/elbo" if name == "renyi_no_lower_bound" else f"val/{name}")
        assert result[f"val/{name}"] == pytest.approx(float((expected.bound + batch.log_det).mean()))
        elbo = expected.terms["reconstruction"] - expected.terms["kl"] + batch.log_det
        assert result["val/elbo"] == pytest.approx(float(elbo.mean()))
