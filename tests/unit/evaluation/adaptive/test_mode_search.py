"""The search for modes: exact posteriors of linear decoders, all modes of folded ones, and who gets further starts."""

from __future__ import annotations

import math

import pytest
import torch
from support.models.annealing import linear_gaussian, tempered
from support.models.folded import folded, images_at, quadrature
from support.models.members import exact_marginal, make_data, make_model
from torch import Tensor

from vaerun.evaluation.adaptive.mode_search import Modes, find_modes
from vaerun.models import Joint


def search(joint: Joint, starts: int = 16, first: Tensor | None = None, seed: int = 0, **options) -> Modes:
    size, d = len(joint.x), joint.latent_dim
    table = joint.prior.transform(torch.randn(256, size, d, generator=torch.Generator().manual_seed(seed)))[0]
    first = torch.zeros(0, size, d) if first is None else first
    options = {"max_starts": 2 * starts, "chunk": 1000} | options
    with torch.no_grad():
        return find_modes(joint, first, lambda i, j: table[i:j], starts=starts, **options)


def at_orthants(modes: Modes, d: int) -> list[Tensor]:
    """Log of the evidence [B] in each of the 2^d orthants of z, numbered as by quadrature."""
    orthant = ((modes.mean > 0) * 2 ** torch.arange(d)).sum(-1)
    return [torch.logsumexp(torch.where(orthant == i, modes.log_evidence, -math.inf), 1) for i in range(2**d)]


@pytest.mark.parametrize("context", ["plain", "label", "label_prior"])
@pytest.mark.parametrize("d", [1, 3, 8])
def test_the_mode_of_a_linear_decoder_is_its_posterior(context, d):
    model = linear_gaussian(context, d=d)
    x, c = make_data(model, 6)
    modes = search(model.joint(x, c), starts=4)
    truth = tempered(model, x, c, 1.0)
    precision = modes.cholesky[:, 0] @ modes.cholesky[:, 0].mT
    torch.testing.assert_close(precision, truth.precision_matrix, atol=1e-9, rtol=1e-9)
    offset = ((modes.mean[:, 0] - truth.mean).unsqueeze(1) @ truth.precision_matrix)[:, 0]
    assert ((offset * (modes.mean[:, 0] - truth.mean)).sum(1) < 0.01).all()  # half of it in nats
    exact = exact_marginal(model, c, 6).log_prob(x.flatten(1)).detach()
    torch.testing.assert_close(modes.log_evidence[:, 0], exact, atol=0.005, rtol=0)
    assert (modes.log_evidence[:, 1:] == -math.inf).all()
    assert (modes.starts == 8).all()  # two blocks, which agree
    assert not modes.disagreed.any()


@pytest.mark.parametrize(("d", "twice"), [(1, False), (1, True), (2, False)])
def test_all_modes_are_found_with_the_mass_of_quadrature(d, twice):
    # Folded by ReLU, a posterior is normal up to its far tails within every cell of latent space.
    model = folded(d, activation="relu", twice=twice)
    z = (0.35 if twice else 1.0) + 0.1 * torch.rand(4, d)
    x = images_at(model, z).batch(0, 4).x
    total, masses = quadrature(model, x)
    modes = search(model.joint(x), starts=32)
    found = modes.log_evidence > -math.inf
    relevant = masses > total.unsqueeze(1) - 8
    for i, here in enumerate(at_orthants(modes, d)):
        torch.testing.assert_close(here[relevant[:, i]], masses[relevant[:, i], i], atol=0.05, rtol=0)
    assert (found.sum(1) == (4 if twice else 2) ** d).all()
    assert relevant.sum() > 4


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_modes_of_a_smooth_decoder_have_nearly_the_mass_of_quadrature(likelihood):
    model = folded(2, likelihood)
    x = images_at(model, 0.7 + 0.2 * torch.rand(6, 2)).batch(0, 6).x
    total, masses = quadrature(model, x)
    modes = search(model.joint(x), starts=32)
    relevant = masses > total.unsqueeze(1) - 4
    assert relevant.sum() > 6
    if likelihood == "gaussian":  # Bernoulli's modes are wide enough to merge
        assert (torch.stack(at_orthants(modes, 2), 1) - masses)[relevant].abs().max() < 1.5
    assert ((torch.logsumexp(modes.log_evidence, 1) - total).abs() < 1.5).all()
    assert (modes.log_evidence[:, 1:] <= modes.log_evidence[:, :-1]).all()  # the best first


def test_a_mode_is_stationary_and_its_precision_that_of_the_linearisation():
    model = make_model(network="mlp", d=3)
    x, _ = make_data(model, 5)
    joint = model.joint(x)
    modes = search(joint)
    with torch.no_grad():
        at = joint.linearise(modes.mean[:, 0])
        precision = modes.cholesky[:, 0] @ modes.cholesky[:, 0].mT
        # Of one step before the end.
        assert ((precision - at.precision).flatten(1).norm(dim=1) < 0.2 * at.precision.flatten(1).norm(dim=1)).all()
        solved = torch.linalg.solve(at.precision, at.gradient.unsqueeze(-1))[..., 0]
        assert ((at.gradient * solved).sum(1) < 0.2).all()
        log_f = joint.log_prob(modes.mean[:, 0].unsqueeze(0))[0]
    evidence = log_f + 1.5 * math.log(2 * math.pi) - 0.5 * torch.logdet(precision)
    torch.testing.assert_close(modes.log_evidence[:, 0], evidence, atol=1e-9, rtol=0)


def test_only_an_image_whose_evidence_changed_gets_further_starts():
    # Image 0's first starts are on its better side, so that later ones change little; image 1's are on the other.
    model = folded(1, activation="relu")
    x = images_at(model, torch.full((2, 1), 1.2)).batch(0, 2).x
    _, masses = quadrature(model, x)
    assert (masses[:, 1] > masses[:, 0] + 1).all()
    table, asked = torch.ones(64, 2, 1), []
    table[2:4, 0], table[:2, 1] = -1.0, -1.0

    def draw(i: int, j: int) -> Tensor:
        asked.append((i, j))
        return table[i:j]

    with torch.no_grad():
        joint, none = model.joint(x), torch.zeros(0, 2, 1)
        modes = find_modes(joint, none, draw, starts=2, max_starts=64, chunk=100)
        assert asked == [(0, 2), (2, 4), (4, 8)]
        assert modes.starts.tolist() == [4, 8]
        assert modes.disagreed.tolist() == [False, True]
        for found, mass in zip(modes.log_evidence, masses, strict=True):
            torch.testing.assert_close(found[:2], mass.sort(descending=True).values, atol=0.05, rtol=0)
        # No block beyond max_starts, and the first starts are counted too.
        few = find_modes(joint, -torch.ones(1, 2, 1), draw, starts=2, max_starts=4, chunk=3)
        assert few.starts.tolist() == [5, 5]
        assert few.disagreed.tolist() == [False, True]


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("context", ["plain", "label_prior"])
def test_unusable_starts_do_no_harm(likelihood, context):
    model = make_model("amortised", likelihood, context=context, d=2)
    x, c = make_data(model, 3)
    joint = model.joint(x, c)
    expected = search(joint)
    bad = torch.tensor([math.nan, math.inf, -math.inf, 1e200, 1e30]).view(5, 1, 1).expand(5, 3, 2).clone()
    bad[1, :, 1] = 0.0
    modes = search(joint, first=bad)
    assert (modes.starts == expected.starts + 5).all()
    torch.testing.assert_close(modes.log_evidence[:, 0], expected.log_evidence[:, 0], atol=0.02, rtol=0)
    for value in (modes.mean, modes.cholesky):
        assert value.isfinite().all()
    # Nothing else: no mode, and a proposal can still be made of what is returned.
    with torch.no_grad():
        nothing = find_modes(joint, bad[:1], lambda i, j: bad[:1].expand(j - i, 3, 2), starts=2, max_starts=8, chunk=9)
    assert (nothing.log_evidence == -math.inf).all()
    assert not nothing.disagreed.any()
    assert nothing.mean.isfinite().all()


def test_neither_chunk_nor_company_changes_the_modes():
    model = make_model("amortised", "bernoulli", context="label_prior", d=2)
    x, c = make_data(model, 5)
    table = torch.randn(64, 5, 2)
    rows = torch.tensor([3, 1])

    def modes_of(index: Tensor, chunk: int) -> Modes:
        joint = model.joint(x[index], c[index])
        with torch.no_grad():
            return find_modes(
                joint, table[63:, index], lambda i, j: table[i:j, index], starts=6, max_starts=48, chunk=chunk
            )

    whole, few = modes_of(torch.arange(5), 100), modes_of(rows, 1)
    width = few.log_evidence.shape[1]
    torch.testing.assert_close(few.log_evidence, whole.log_evidence[rows, :width], atol=1e-8, rtol=0)
    found = few.log_evidence > -math.inf
    torch.testing.assert_close(few.mean[found], whole.mean[rows, :width][found], atol=1e-6, rtol=0)
    assert torch.equal(few.starts, whole.starts[rows])
    assert torch.equal(few.disagreed, whole.disagreed[rows])
