"""What an estimate by adaptive importance sampling depends on: the decoder, the image and the seed; nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from support.models.annealing import linear_gaussian, make_split
from support.models.draw import draw
from support.models.folded import folded, images_at
from support.models.members import CONTEXTS, LIKELIHOODS, POSTERIORS, make_model
from support.models.precision import set_precision
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.data.transforms import Transform
from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.adaptive.amis import adaptive_importance_sampling, amis_bracket
from vaerun.models import LatentModel

QUICK = Amis(samples=600, starts=4, max_starts=16, rounds=2, max_rounds=4, round_samples=100)
COUNTS = ("amis_starts", "amis_starts_disagree", "amis_modes", "amis_rounds")


def split_for(model: LatentModel, n: int) -> Split:
    split = make_split(model, n, Transform(binarize="fixed") if model.likelihood.name == "bernoulli" else None)
    if model.likelihood.name == "bernoulli":
        split.images.copy_((split.images > 127) * 255)
        split.binarised = True
    return split


def variance(result: dict[str, Tensor], samples: int) -> Tensor:
    """Of each image's estimate, to first order [N]."""
    return 1 / result["amis_ess"] - 1 / samples


def check_agreement(a: dict[str, Tensor], b: dict[str, Tensor], samples: int) -> None:
    """Within 4 standard errors per image and 4 of the mean."""
    difference, total = a["amis"] - b["amis"], variance(a, samples) + variance(b, samples)
    assert (difference.abs() < 4 * total.sqrt() + 1e-6).all()
    assert difference.mean().abs() < 4 * total.mean().sqrt() / len(difference) ** 0.5 + 1e-6


def same_decoder(reference: LatentModel, other: LatentModel) -> LatentModel:
    """`other` with the generative model of `reference`."""
    parts = {k: v for k, v in reference.state_dict().items() if not k.startswith("inference.")}
    assert not other.load_state_dict(parts, strict=False).unexpected_keys
    return other.eval()


def members(*quick: tuple[str, str]) -> pytest.MarkDecorator:
    """All networks, likelihoods and contexts; slow but for `quick` pairs of the latter two with a small MLP."""
    return pytest.mark.parametrize(
        ("network", "likelihood", "context"),
        [
            pytest.param(n, k, c, marks=() if n == "mlp" and (k, c) in quick else pytest.mark.slow)
            for n, k, c in product(("mlp", "relu", "conv"), LIKELIHOODS, CONTEXTS)
        ],
    )


# -- whatever q -------------------------------------------------------------------------------------------------------


@members(("gaussian", "label_prior"), ("bernoulli", "label"))
def test_every_posterior_gives_the_estimate_of_the_decoder(network, likelihood, context):
    reference = make_model("amortised", likelihood, network, context, d=2).eval()
    split = split_for(reference, 6)
    # Neither the starts nor the noise of the reference are theirs: what agrees is the number itself.
    expected = adaptive_importance_sampling(reference, split, QUICK, seed=1, posterior_start=False)
    for name in POSTERIORS:
        model = same_decoder(reference, make_model(name, likelihood, network, context, d=2, seed=7))
        result = adaptive_importance_sampling(model, split, QUICK, seed=2)
        check_agreement(result, expected, QUICK.samples)
        assert (result["amis_starts"] == expected["amis_starts"] + 1).double().mean() > 0.5  # q's mean
    same_seed = adaptive_importance_sampling(reference, split, QUICK, seed=2, posterior_start=False)
    check_agreement(same_seed, expected, QUICK.samples)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["plain", "label_prior"])
def test_it_evaluates_a_recurrent_model(context):
    model = draw(context=context).eval()
    split = make_split(model, 5)
    a = adaptive_importance_sampling(model, split, QUICK, seed=1, posterior_start=True)
    b = adaptive_importance_sampling(model, split, QUICK, seed=2, posterior_start=False)
    check_agreement(a, b, QUICK.samples)


# -- chunks, company and order ----------------------------------------------------------------------------------------


@members(("gaussian", "plain"), ("bernoulli", "label_prior"))
def test_neither_chunk_nor_company_changes_a_value(network, likelihood, context):
    model = make_model("laplace2", likelihood, network, context, d=2).eval()
    split = split_for(model, 10)
    run = partial(adaptive_importance_sampling, model, seed=2)
    expected = run(split, QUICK, chunk=100_000)  # all images at once
    for other, rows in (
        (run(split, QUICK, chunk=97), slice(10)),  # one image, in parts
        (run(split, QUICK, chunk=330), slice(10)),  # four images at once
        (run(split, QUICK, images=4), slice(4)),
        (run(split, QUICK, images=7, chunk=240), slice(7)),  # a ragged last batch
    ):
        assert other.keys() == expected.keys()
        for name, value in expected.items():
            atol = 0 if name in COUNTS else 1e-6
            torch.testing.assert_close(other[name], value[rows], atol=atol, rtol=1e-7, equal_nan=True)


def test_an_image_with_fewer_modes_than_its_company_is_not_changed_by_it():
    # The arrays are as wide as the batch's most modes: alone, an image has fewer columns.
    model = folded(1, "bernoulli")
    split = images_at(model, 1.1 + 0.3 * torch.rand(8, 1))
    run = partial(adaptive_importance_sampling, model, split, QUICK, seed=0)
    together, alone = run(chunk=100_000), run(chunk=97)
    assert len(together["amis_modes"].unique()) > 1
    for name, value in together.items():
        torch.testing.assert_close(alone[name], value, atol=0 if name in COUNTS else 1e-6, rtol=1e-7, equal_nan=True)


def test_the_last_images_alone_are_what_they_were_in_company():
    # By the core's own functions, which take the indices of the images: rows 7 to 9, in another order.
    model = make_model("amortised", context="label_prior", d=2).eval()
    split = split_for(model, 10)
    expected = adaptive_importance_sampling(model, split, QUICK, seed=2)
    reordered = Reordered(split, [9, 7, 8])
    result = adaptive_importance_sampling(model, reordered, QUICK, seed=2)
    for name, value in expected.items():
        atol = 0 if name in COUNTS else 1e-6
        torch.testing.assert_close(result[name], value[[9, 7, 8]], atol=atol, rtol=1e-7, equal_nan=True)


class Reordered(Split):
    """Some images of a split, under their own numbers."""

    def __init__(self, split: Split, rows: list[int]) -> None:
        super().__init__(
            split.name, split.images[rows], split.labels[rows], split.classes, split.transform, split.binarised
        )
        self.rows = torch.tensor(rows)

    def batch(self, start: int, stop: int):
        return replace(super().batch(start, stop), rows=self.rows[start:stop])


# -- the seed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_seed_is_all_the_randomness_there_is(likelihood):
    model = make_model("iaf2", likelihood, context="label", d=2).eval()
    split = split_for(model, 20)
    run = partial(adaptive_importance_sampling, model, split, QUICK)
    first = run(seed=0)
    torch.manual_seed(99)
    for name, value in run(seed=0).items():
        assert torch.equal(value, first[name]), name
    other = run(seed=1)
    assert ((first["amis"] - other["amis"]).abs() > 1e-9).all()
    check_agreement(first, other, QUICK.samples)


def test_the_bracket_depends_on_its_seed_and_nothing_else():
    model = linear_gaussian("label_prior", d=3)
    run = partial(amis_bracket, model, QUICK)
    first = run(images=9, seed=0)
    for other, rows in ((run(images=9, seed=0, chunk=97), slice(9)), (run(images=4, seed=0), slice(4))):
        for name, value in first.items():
            torch.testing.assert_close(other[name], value[rows], atol=1e-6, rtol=1e-7)
    assert all(torch.equal(value, first[name]) for name, value in run(images=9, seed=0).items())
    assert ((run(images=9, seed=1)["amis_lower"] - first["amis_lower"]).abs() > 1e-3).all()


def test_single_precision_agrees(single_precision):
    set_precision(torch.float64)
    wide = make_model("amortised", context="label_prior", d=3).eval()
    set_precision(torch.float32)
    model = make_model("amortised", context="label_prior", d=3).eval()
    model.load_state_dict(wide.state_dict())
    split = split_for(model, 12)
    result = adaptive_importance_sampling(model, split, QUICK, seed=0)
    assert result["amis"].dtype == torch.float64
    set_precision(torch.float64)
    check_agreement(result, adaptive_importance_sampling(wide, split, QUICK, seed=1), QUICK.samples)
