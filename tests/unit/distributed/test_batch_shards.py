"""The shards of a batch add up to the batch; an objective that cannot be split is rejected."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

import pytest
import torch
from support.models import adversarial, members
from support.runs.processes import MODELS, Case, likelihood, split_of
from torch import Tensor, nn

from vaerun import randomness
from vaerun.distributed.collectives import Ranks, digest, shard_for_rank
from vaerun.distributed.process_group import check_splittable
from vaerun.distributions import DiagonalNormal
from vaerun.errors import InputError
from vaerun.estimators import ScoreFunction, elbo, elbo_mc
from vaerun.objectives import Adversarial, Variational
from vaerun.randomness import batch_normal, batch_slice, batch_uniform

IMAGES = 5
SIZES = [2, 3, 7]  # 7: two ranks have no image


@pytest.mark.parametrize("size", [1, *SIZES])
@pytest.mark.parametrize("images", [1, 2, IMAGES, 128])
def test_shares_are_the_batch(images: int, size: int) -> None:
    shards = [shard_for_rank(images, rank, size) for rank in range(size)]
    counted = [row for shard in shards for row in range(shard.start, shard.start + shard.valid)]
    assert counted == list(range(images))
    assert max(s.valid for s in shards) - min(s.valid for s in shards) <= 1
    values = torch.randn(images)
    assert all(len(values[shard.rows]) == max(1, shard.valid) for shard in shards)  # the model sees a row in any case
    for reduce, whole in (("mean", values.mean()), ("sum", values.sum())):
        parts = [getattr(shard, reduce)(values[shard.rows]) for shard in shards]
        torch.testing.assert_close(torch.stack(parts).sum(), whole)


@pytest.mark.parametrize(("draw", "plain"), [(batch_normal, torch.randn), (batch_uniform, torch.rand)])
@pytest.mark.parametrize("dim", [0, 1])
def test_noise_is_the_rows_of_the_whole_batchs(draw: Any, plain: Any, dim: int) -> None:
    def drawn(function: Callable[..., Tensor], count: int, *args: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        shape = (count, 4) if dim == 0 else (3, count, 4)
        return function(shape, *args), torch.rand(3)

    whole, after = drawn(plain, IMAGES)
    assert all(torch.equal(*pair) for pair in zip(drawn(draw, IMAGES, dim), (whole, after), strict=True))
    for start, stop in ((0, 2), (2, 5), (0, 5)):
        with batch_slice(start, stop, IMAGES) as part:
            noise, later = drawn(draw, stop - start, dim)
            assert part.draws == 1
        assert torch.equal(noise, whole.narrow(dim, start, stop - start))
        assert noise.is_contiguous()
        assert torch.equal(later, after)  # later draws are the same on all ranks, too


def test_rows_end_with_their_block_and_are_counted() -> None:
    with batch_slice(0, 1, 2):
        with batch_slice(1, 3, 4):
            assert batch_normal((2,), 0).shape == (2,)
        assert batch_normal((1,), 0).shape == (1,)
    with contextlib.suppress(ZeroDivisionError), batch_slice(0, 1, 2):
        raise ZeroDivisionError
    assert randomness._context.batch_slice is None
    with batch_slice(0, 1, 2), pytest.raises(RuntimeError, match="noise requested for 3 images"):
        batch_normal((3, 1), 0)


@pytest.mark.parametrize("transform", members.TRANSFORMS)
def test_training_batch_is_rows_of_the_whole(transform: str) -> None:
    split = split_of(Case(likelihood(), classes=3, transform=transform))
    chosen = torch.tensor([4, 20, 9, 0, 13])
    torch.manual_seed(1)
    whole = split.training_batch(chosen)
    torch.manual_seed(1)
    with batch_slice(2, 4, 5):
        part = split.training_batch(chosen[2:4])
    assert torch.equal(part.x, whole.x[2:4])
    assert torch.equal(part.log_det, whole.log_det[2:4])
    assert torch.equal(part.rows, whole.rows[2:4])
    assert part.c is not None
    assert whole.c is not None
    assert torch.equal(part.c, whole.c[2:4])


def test_noise_of_a_posterior_and_of_a_joint() -> None:
    model = members.make_model()
    x, _ = members.make_data(model, IMAGES)
    q = DiagonalNormal(torch.randn(IMAGES, 3), torch.randn(IMAGES, 3))
    torch.manual_seed(2)
    expected = q.rsample((4,)), model.joint(x).noise("posterior", 2)
    torch.manual_seed(2)
    with batch_slice(1, 3, IMAGES):
        part = DiagonalNormal(q.mean[1:3], q.log_variance[1:3])
        assert torch.equal(part.rsample((4,)), expected[0][:, 1:3])
        assert torch.equal(model.joint(x[1:3]).noise("posterior", 2), expected[1][:, 1:3])


def gradients(
    objective: Any, phase: str, images: int, rank: int, size: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gradients of one rank's contribution to the mean loss of the first images, and its metrics' sums."""
    split = split_of(Case(likelihood(), classes=3, shape=objective.model.image_shape))
    objective.zero_grad()
    torch.manual_seed(3)
    with Ranks(rank, size).shard(images) as shard:
        batch = split.training_batch(torch.arange(images)[shard.rows])
        loss, metrics = objective.loss(phase, 2, batch)
    shard.mean(loss).backward()
    grads = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    return grads, {key: shard.sum(value) for key, value in metrics.items()}


def assert_shares_add_up(make: Callable[[], Any], phase: str, size: int) -> None:
    whole, sums = gradients(make(), phase, IMAGES, 0, 1)
    parts = [gradients(make(), phase, IMAGES, rank, size) for rank in range(size)]
    assert all(part.keys() == whole.keys() for part, _ in parts)  # Adam skips parameters without a gradient
    for name, value in whole.items():
        scale = max(float(value.abs().max()), 1e-9)
        total = torch.stack([part[name] for part, _ in parts]).sum(0)
        torch.testing.assert_close(total / scale, value / scale, rtol=0, atol=1e-10)
    for name, value in sums.items():
        torch.testing.assert_close(torch.stack([metrics[name] for _, metrics in parts]).sum(), value)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("posterior", members.POSTERIORS)
def test_every_posteriors_gradient_is_the_sum_of_its_shares(posterior: str, size: int) -> None:
    make = partial(likelihood(posterior, "elbo_mc", 2, context="label_prior"), split_of(MODELS["cvae"]))
    assert_shares_add_up(make, "model", size)


@pytest.mark.parametrize("estimator", [name for name in members.ESTIMATORS if name != "score_mean"])
def test_every_estimators_gradient_is_the_sum_of_its_shares(estimator: str) -> None:
    make = partial(likelihood("laplace0", estimator, 3), split_of(MODELS["vae"]))
    assert_shares_add_up(make, "model", 3)


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
@pytest.mark.parametrize("name", ["gan", "conditional gan", "infogan"])
def test_every_adversarial_gradient_is_the_sum_of_its_shares(name: str, phase: str) -> None:
    assert_shares_add_up(partial(MODELS[name].make, split_of(MODELS[name])), phase, 7)


# -- what cannot be trained by parts ---------------------------------------------------------------------------------


def refused(objective: Any, case: Case) -> str:
    state, random = digest(objective.state_dict()), torch.get_rng_state()
    check_splittable(objective, split_of(case), 1)  # a single process accepts everything
    with pytest.raises(InputError, match=r"^trainer\.processes=2: .*set trainer\.processes=1") as error:
        check_splittable(objective, split_of(case), 2)
    assert digest(objective.state_dict()) == state
    assert torch.equal(torch.get_rng_state(), random)
    return str(error.value)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_trained_by_several_passes(name: str) -> None:
    objective = MODELS[name].make(split_of(MODELS[name]))
    state, random = digest(objective.state_dict()), torch.get_rng_state()
    check_splittable(objective, split_of(MODELS[name]), 2)
    assert digest(objective.state_dict()) == state
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("member", ["dcgan", "conditional dcgan", "infogan"])
def test_batch_normalisation_is_refused(member: str) -> None:
    model = adversarial.make_model(**adversarial.MEMBERS[member])
    objective = Adversarial(model, adversarial.NonSaturating())
    assert "batch normalisation" in refused(objective, Case(likelihood(), classes=3, shape=(1, 16, 16)))


@pytest.mark.parametrize(
    ("estimator", "setting"),
    [
        (partial(elbo, free_bits=0.5), "estimator.free_bits=0.5"),
        (partial(elbo_mc, free_bits=2.0, kl_weight=0.5), "estimator.free_bits=2.0"),
        (ScoreFunction("mean"), "estimator.control_variate=mean"),
    ],
)
def test_estimators_that_look_at_the_batch_are_refused(estimator: Any, setting: str) -> None:
    if isinstance(estimator, partial):
        estimator = update_wrapper(estimator, estimator.func)  # as plugins.bind does
    assert setting in refused(Variational(members.make_model(), estimator, 2), Case(likelihood()))


@pytest.mark.parametrize("estimator", [partial(elbo, free_bits=0.0), ScoreFunction("none")])
def test_their_options_that_do_not_pass(estimator: Any) -> None:
    check_splittable(Variational(members.make_model(), estimator, 2), split_of(Case(likelihood())), 2)


def own_noise(joint: Any, q: Any, samples: int) -> Any:
    estimate = elbo(joint, q, samples)
    noise = 1e-9 * torch.randn_like(estimate.bound)
    return type(estimate)(estimate.bound, estimate.surrogate + noise, estimate.terms)


def batch_mean(joint: Any, q: Any, samples: int) -> Any:
    estimate = elbo(joint, q, samples)
    centred = estimate.surrogate - estimate.surrogate.mean()
    return type(estimate)(estimate.bound, centred, estimate.terms)


@pytest.mark.parametrize(("estimator", "words"), [(own_noise, "randn_like"), (batch_mean, "other images of its batch")])
def test_a_users_own_estimator_is_tried(estimator: Any, words: str) -> None:
    assert words in refused(Variational(members.make_model(), estimator, 1), Case(likelihood()))


class Dropped(nn.Module):
    """An encoder with dropout."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        return nn.functional.dropout(self.encoder(x, c), 0.1, self.training)


def test_dropout_is_noise_of_its_own() -> None:
    model = members.make_model()
    model.inference.encoder = Dropped(model.inference.encoder)
    assert "draws random numbers of its own" in refused(Variational(model, elbo, 1), Case(likelihood()))
