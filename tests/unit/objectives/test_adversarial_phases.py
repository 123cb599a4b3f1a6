"""Two phases: what each minimises and updates, and that it leaves all else unchanged, bit for bit."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support.models.adversarial import MEMBERS, everything, make_batch, make_model, make_objective
from support.runs.commands import assert_same_bits
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

from vaerun.models import Codes
from vaerun.objectives import Adversarial, InformationWeights
from vaerun.objectives.adversarial import frozen_view
from vaerun.training import TrainSettings, make_optimisers
from vaerun.training.finite_guard import FiniteGuard
from vaerun.training.step import update

SETTINGS = TrainSettings(seed=0, epochs=1, batch_size=6, learning_rate=0.01)
NO_BATCH_NORM = ["mlp", "mlp spectral conditional", "dcgan spectral without norm", "infogan of one kind"]


def make(member: str, **options: Any) -> Adversarial:
    return make_objective(make_model(**MEMBERS[member]), **options).train()


def one_update(objective: Adversarial, phase: str, batch: Any) -> None:
    optimiser = make_optimisers(objective.phases, SETTINGS)[phase]
    loss, metrics = objective.loss(phase, 0, batch)
    update(optimiser, loss.mean(), metrics, clip_norm=None, guard=FiniteGuard(torch.device("cpu")), step=0)


def part(objective: Adversarial, name: str) -> dict[str, Tensor]:
    return everything(getattr(objective.model, name))


@pytest.mark.parametrize(("member", "r1"), [*[(m, 0.0) for m in MEMBERS], *[(m, 2.0) for m in NO_BATCH_NORM]])
@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_a_phase_updates_its_own_network_alone(phase: str, member: str, r1: float) -> None:
    """All of it, Q and batch statistics included; of the rest not even a running mean or a power iteration."""
    objective = make(member, r1=r1)
    batch = make_batch(classes=objective.model.classes)
    other_phase = "generator" if phase == "discriminator" else "discriminator"
    trained, frozen = part(objective, phase), part(objective, other_phase)
    average = None if objective.model.average is None else part(objective, "average")
    one_update(objective, phase, batch)
    assert_same_bits(part(objective, other_phase), frozen)
    assert all(p.grad is None for p in getattr(objective.model, other_phase).parameters())
    if average is not None:
        assert_same_bits(part(objective, "average"), average)
    now = part(objective, phase)
    # The left singular vector of a head with one output is always 1.
    assert [n for n in trained if torch.equal(trained[n], now[n])] == [
        n for n in trained if n.startswith("head") and "_u" in n
    ]


@pytest.mark.parametrize("member", MEMBERS)
def test_frozen_view_computes_the_same(member: str) -> None:
    """With the batch's own statistics in training mode, the running ones in evaluation, as the module itself does."""
    objective = make(member)
    model, batch = objective.model, make_batch(classes=objective.model.classes)
    noise = model.generator_inputs(torch.randn(6, model.noise_dim))[0]
    with torch.no_grad():
        for mode in (True, False):
            objective.train(mode)
            for module, inputs in ((model.generator, noise), (model.discriminator, 2 * batch.x - 1)):
                twin = copy.deepcopy(module)
                if mode:
                    for m in twin.modules():  # estimated no further
                        if type(m).__name__ == "_SpectralNorm":
                            m.eval()
                before = everything(module)
                actual, expected = frozen_view(module)(inputs, batch.c), twin(inputs, batch.c)
                assert_same_bits(everything(module), before)
                for a, b in zip(actual, expected, strict=True):
                    assert (a is b is None) or torch.equal(a, b)
                assert all(m.training is mode for m in module.modules())
                assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("member", MEMBERS)
def test_losses_and_gradients_against_plain_autograd(member: str) -> None:
    """The definition, with copies in place of views and torch's distributions in place of the codes' own."""
    weights = InformationWeights(categorical=0.7, continuous=0.2)
    objective = make(member, information=weights).eval()  # where the same module gives the same twice
    model, batch = objective.model, make_batch(classes=objective.model.classes)
    noise = torch.randn(6, model.noise_dim)
    inputs, code = model.generator_inputs(noise)
    real, c = 2 * batch.x - 1, batch.c if model.classes else None

    def information(q: Tensor | None) -> Tensor:
        actual, codes = torch.zeros(6), model.codes
        if codes is None or q is None or code is None:
            return actual
        start = 0
        for k in codes.categorical:
            block = slice(start, start + k)
            actual = actual + 0.7 * (Categorical(logits=q[:, block]).log_prob(code[:, block].argmax(1)) + math.log(k))
            start += k
        for i in range(codes.continuous):
            learned = q[:, start + codes.continuous + i].exp() + 1e-3
            variance = learned if codes.variance is None else torch.tensor(codes.variance)
            normal = Normal(q[:, start + i], variance.sqrt())
            actual = actual + 0.2 * (normal.log_prob(code[:, start + i]) + math.log(2))
        return actual

    # Discriminator: generated images are given.
    twin = copy.deepcopy(model)
    fake = twin.generator(inputs, c).detach()
    (real_logit, _), (fake_logit, q) = twin.discriminator(real, c), twin.discriminator(fake, c)
    plain = -F.logsigmoid(real_logit) - F.logsigmoid(-fake_logit)
    expected = plain - information(q)
    expected.mean().backward()
    loss, metrics = objective.discriminator_loss(batch.x, c, noise)
    loss.mean().backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["discriminator_loss"], plain.detach())
    assert metrics["accuracy_real"].tolist() == (real_logit > 0).double().tolist()
    assert metrics["accuracy_fake"].tolist() == (fake_logit < 0).double().tolist()
    compare(model.discriminator, twin.discriminator)

    # Generator: discriminator and Q are given.
    twin = copy.deepcopy(model)
    twin.discriminator.requires_grad_(False)
    logit, q = twin.discriminator(twin.generator(inputs, c), c)
    expected = -F.logsigmoid(logit) - information(q)
    expected.mean().backward()
    loss, metrics = objective.generator_loss(c, noise)
    loss.mean().backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["generator_loss"], -F.logsigmoid(logit).detach())
    compare(model.generator, twin.generator)


def compare(first: nn.Module, second: nn.Module) -> None:
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert float(a.grad.abs().max()) > 0, name
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_q_learns_from_generated_images_alone() -> None:
    """Its gradient in the discriminator phase does not depend on the real images."""
    objective = make("infogan")
    noise, state = torch.randn(6, objective.model.noise_dim), copy.deepcopy(objective.state_dict())
    results = []
    for seed in (0, 1):
        objective.load_state_dict(state)
        objective.zero_grad()
        objective.discriminator_loss(make_batch(seed=seed).x, None, noise)[0].mean().backward()
        results.append([p.grad.clone() for p in objective.model.discriminator.parameters()])
    q = {id(p) for p in objective.model.discriminator.q.parameters()}
    same = [torch.equal(a, b) for a, b in zip(*results, strict=True)]
    assert same == [id(p) in q for p in objective.model.discriminator.parameters()]


@pytest.mark.parametrize("member", [m for m in MEMBERS if "infogan" in m])
def test_without_lambda_it_is_a_gan(member: str) -> None:
    """Same weights, same inputs: the generator's numbers are z and codes, for a GAN all of them are z."""
    objective = make(member, information=InformationWeights(0.0, 0.0))
    model = objective.model
    gan = make_objective(make_model(**{k: v for k, v in MEMBERS[member].items() if k != "codes"})).train()
    gan.model.latent_dim = model.latent_dim + model.codes.size
    gan.model.generator = copy.deepcopy(model.generator)
    gan.model.discriminator = copy.deepcopy(model.discriminator)
    gan.model.discriminator.q = None
    x, noise = make_batch().x, torch.randn(6, model.noise_dim)
    inputs, _ = model.generator_inputs(noise)
    for losses in (
        (objective.discriminator_loss(x, None, noise), gan.discriminator_loss(x, None, inputs)),
        (objective.generator_loss(None, noise), gan.generator_loss(None, inputs)),
    ):
        assert torch.equal(losses[0][0], losses[1][0])
        for loss, _ in losses:
            loss.mean().backward()
    theirs = dict(gan.model.named_parameters())
    for name, p in model.named_parameters():
        if name.startswith("discriminator.q"):
            assert not p.grad.any()
        elif not name.startswith("average"):
            assert torch.equal(p.grad, theirs[name].grad), name
            assert p.grad.any()
    # And the codes' gradient is there where lambda is.
    name, p = next(model.generator.named_parameters())
    p.grad = None
    make_objective(model, information=InformationWeights(1.0, 0.0)).generator_loss(None, noise)[0].mean().backward()
    assert not torch.allclose(p.grad, theirs[f"generator.{name}"].grad)


class Writes(nn.Module):
    """A generator that encodes the codes in the image, or only their parity."""

    def __init__(self, latent: int, parity: bool = False) -> None:
        super().__init__()
        self.latent, self.parity, self.unused = latent, parity, nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        code = z[..., self.latent :]
        if self.parity:
            code = torch.stack([code[..., ::2].sum(-1), code[..., 1::2].sum(-1)], -1).repeat(1, code.shape[-1] // 2)
        return 2 * code.view(len(z), 1, 1, -1) - 1


@pytest.mark.parametrize("parity", [False, True])
def test_bound_reaches_what_the_image_tells(parity: bool) -> None:
    """= H(c) where the generator writes the code; log 2 where it writes one bit; never more. Q trained, exactly."""
    codes, k = Codes([6]), 6
    model = make_model(shape=(1, 1, k), codes=codes)
    model.generator = Writes(model.latent_dim, parity)
    objective = make_objective(model, information=InformationWeights(1.0, 0.0))
    noise = torch.cat([torch.randn(k, model.latent_dim), 9 * torch.eye(k)], 1)  # each value once: exact expectations
    x, limit = make_batch(k, (1, 1, k)).x, math.log(2) if parity else math.log(k)
    optimiser = torch.optim.Adam(model.discriminator.parameters(), 0.03)
    results = []
    for _ in range(300):
        optimiser.zero_grad()
        objective.discriminator_loss(x, None, noise)[0].mean().backward()
        optimiser.step()
        metrics = objective.generator_loss(None, noise)[1]
        results.append(metrics["mutual_information"].mean().item())
    torch.testing.assert_close(metrics["code_entropy"], torch.full((k,), math.log(k)))
    assert results[0] < limit - 0.1
    assert max(results) <= limit + 1e-12
    assert results[-1] == pytest.approx(limit, abs=2e-3)


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_average_in_closed_form(decay: float) -> None:
    """a_T = prod_t d_t a_0 + sum_t (1 - d_t) prod_{s > t} d_s g_t, running statistics included."""
    objective = make("dcgan", decay=decay)
    model, steps = objective.model, 12
    start, states = everything(model.average), []
    for t in range(steps):
        with torch.no_grad():
            for value in model.generator.state_dict().values():
                if value.is_floating_point():
                    value.copy_(torch.randn_like(value))
                else:
                    value.fill_(100 + t)
        states.append(everything(model.generator))
        objective.after_step(t)
        assert_same_bits(everything(model.generator), states[-1])
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(steps)]
    assert (max(decays) == 0.3) is (decay == 0.3)
    actual = everything(model.average)
    assert any("running_var" in name for name in actual)
    for name, value in actual.items():
        if not value.is_floating_point():
            assert int(value) == 100 + steps - 1
            continue
        expected = math.prod(decays) * start[name]
        for t in range(steps):
            expected = expected + (1 - decays[t]) * math.prod(decays[t + 1 :]) * states[t][name]
        torch.testing.assert_close(value, expected)


def test_phases_hold_all_that_trains() -> None:
    objective = make("infogan", discriminator_steps=3)
    model = objective.model
    by_phase = {n: [p for group in phase.groups.values() for p in group] for n, phase in objective.phases.items()}
    assert [id(p) for p in by_phase["discriminator"]] == [id(p) for p in model.discriminator.parameters()]
    assert [id(p) for p in by_phase["generator"]] == [id(p) for p in model.generator.parameters()]
    assert {n: p.repeats for n, p in objective.phases.items()} == {"discriminator": 3, "generator": 1}
    assert list(objective.phases) == ["discriminator", "generator"]
    averaged = {id(p) for p in model.average.parameters()}
    assert averaged.isdisjoint(id(p) for group in by_phase.values() for p in group)
