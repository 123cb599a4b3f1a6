"""Training steps of VLAE (forward, backward, Adam): vaerun's implementation against the explicit Jacobian."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vaerun.bench.case import BenchSettings, Call, Case, Work
from vaerun.bench.textbook import explicit_laplace
from vaerun.estimators import elbo
from vaerun.inference import Laplace
from vaerun.models import Bernoulli, Gaussian, LatentModel
from vaerun.nets import MLPDecoder, MLPEncoder

Loss = Callable[[LatentModel, Tensor, Tensor], Tensor]
VAERUN, TEXTBOOK = "vaerun", "explicit Jacobian"


@dataclass(frozen=True)
class Size:
    """Hidden widths of encoder and decoder, d, image shape, B, T and likelihood."""

    hidden: tuple[int, ...]
    latent: int
    shape: tuple[int, int, int] = (3, 32, 32)
    batch: int = 128
    steps: int = 4
    likelihood: str = "gaussian"

    def __str__(self) -> str:
        widths = "x".join(map(str, self.hidden))
        return (
            f"VLAE {self.likelihood} T={self.steps}, hidden {widths}, d={self.latent}, D={math.prod(self.shape)}, "
            f"B={self.batch}"
        )


SMALL, LARGE = Size((256,), 16), Size((500, 500), 50)
QUICK = Size((12, 10), 3, (1, 4, 4), 5)


def random_images(size: Size, generator: torch.Generator) -> Tensor:
    """Images [B, C, H, W] in [0, 1] near a d-dimensional manifold; binary for a Bernoulli likelihood."""
    basis = torch.randn(size.latent, math.prod(size.shape), generator=generator) / math.sqrt(size.latent)
    codes = torch.randn(size.batch, size.latent, generator=generator)
    x = torch.sigmoid(codes @ basis + 0.1 * torch.randn(size.batch, basis.shape[1], generator=generator))
    x = (x > 0.5).float() if size.likelihood == "bernoulli" else x
    return x.view(size.batch, *size.shape)


def model_and_data(size: Size, device: torch.device) -> tuple[LatentModel, Tensor, Tensor]:
    """A new model, x [B, C, H, W] and noise [B, d], the same in every call."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x, noise = random_images(size, generator), torch.randn(size.batch, size.latent, generator=generator)
    encoder = MLPEncoder(size.shape, hidden=size.hidden)
    decoder = MLPDecoder(size.latent, size.shape, hidden=size.hidden)
    likelihood = Bernoulli() if size.likelihood == "bernoulli" else Gaussian(float(x.var()))
    inference = Laplace(encoder, size.latent, steps=size.steps)
    model = LatentModel(decoder, likelihood, inference, latent_dim=size.latent, mean=x.mean(0))
    return model.to(device), x.to(device), noise.to(device)


def vaerun_loss(model: LatentModel, x: Tensor, noise: Tensor) -> Tensor:
    """-ELBO [B] as vaerun computes it; x [B, C, H, W], noise [B, d]."""
    joint = model.joint(x, noise=lambda stream, k: noise.expand(k, -1, -1))
    return -elbo(joint, model.infer(joint), 1).bound


LOSSES: dict[str, Loss] = {VAERUN: vaerun_loss, TEXTBOOK: explicit_laplace}


def make_step(loss: Loss, size: Size, device: torch.device) -> Call:
    """One training step: forward, backward and Adam."""
    model, x, noise = model_and_data(size, device)
    optimiser = torch.optim.Adam(model.parameters(), 5e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        loss(model, x, noise).mean().backward()
        optimiser.step()

    return step


def loss_differences(size: Size, device: torch.device) -> dict[str, float]:
    """Relative errors of loss and gradient, per implementation and precision, against the explicit one in float64."""
    first, x, noise = model_and_data(size, device)

    def loss_and_gradient(loss: Loss, dtype: torch.dtype) -> tuple[float, Tensor]:
        model = copy.deepcopy(first).to(dtype)
        value = loss(model, x.to(dtype), noise.to(dtype)).mean()
        value.backward()
        return value.item(), torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])

    exact_loss, exact = loss_and_gradient(explicit_laplace, torch.float64)
    errors = {}
    for name, dtype in ((VAERUN, torch.float64), (VAERUN, torch.float32), (TEXTBOOK, torch.float32)):
        value, gradient = loss_and_gradient(LOSSES[name], dtype)
        # In float32 a unit may fall on the other side of its kink, in either implementation.
        precision = str(dtype).removeprefix("torch.")
        errors[f"loss, {name} in {precision}"] = abs(value / exact_loss - 1)
        errors[f"gradient, {name} in {precision}"] = float((gradient - exact).norm() / exact.norm())
    return errors


def step_work(size: Size) -> Work:
    """Minimal work of one step of vaerun's algorithm; a product [m, k] x [k, n] takes 2 m k n operations.

    Let h_0 = d, h_1, ..., h_n = H be the decoder's widths and P = sum_{i>=1} h_{i-1} h_i the weights of its trunk:

    * Tangents of the trunk in d directions, where those of the first layer are its weights:
      C = 2 B d sum_{i>=2} h_{i-1} h_i.
    * Gaussian, each of T + 1 linearisations: M G M' with symmetric G, half of 2 B d H^2, and half of 2 B d^2 H since
      the result is symmetric as well. The last one is differentiated: all of M G (the backward pass needs it), and
      backward two products per product of the tangents, 2 B d H^2 for the gradient of G and twice 2 B d^2 H.
    * Bernoulli, each: J = M W', 2 B d H D, and J F J', half of 2 B d^2 D; backward of the last: two products each.
    * Value and gradient of the residual in each step: forward three passes of single vectors (value, push, pull) and
      backward twice that, each of 2 B (P + H^2) with G, else of 2 B (P + H D); and one pass for the gradient of the
      detached linearisation, which shares the value.
    * G = W'W, half of 2 D H^2 by symmetry, and twice that backward; (x - b) W once, and once backward.
    * Encoder and decoded sample: forward, and backward twice, except the gradient of the images.
    """
    b, d, dims, steps = size.batch, size.latent, math.prod(size.shape), size.steps
    gaussian = size.likelihood == "gaussian"
    widths = [d, *size.hidden]
    trunk = sum(m * n for m, n in pairwise(widths))
    later = trunk - widths[0] * widths[1] if len(widths) > 1 else 0
    last = widths[-1]
    tangents = 2 * b * d * later
    if gaussian:
        detached, final = tangents + b * d * last**2 + b * d**2 * last, tangents * 3 + 4 * b * d * last**2
        final += 5 * b * d**2 * last
        vector = 2 * b * (trunk + last**2)
        once = 3 * dims * last**2 + 4 * b * dims * last
    else:
        detached = tangents + 2 * b * d * last * dims + b * d**2 * dims
        final = 3 * tangents + 6 * b * d * last * dims + 5 * b * d**2 * dims
        vector = 2 * b * (trunk + last * dims)
        once = 0
    encoder = [dims, *size.hidden]
    encoding = sum(m * n for m, n in pairwise(encoder))
    network = 2 * b * (3 * (encoding + encoder[-1] * d) - encoder[0] * encoder[1])
    network += 2 * b * 3 * (trunk + last * dims)
    parameters = encoding + encoder[-1] * d + trunk + last * dims
    return Work(
        flops=steps * (detached + 10 * vector) + final + once + network,
        bytes=4 * 8 * parameters,  # Adam reads and writes parameters and two moments; gradients once each
        factorisations=steps + 1,
        solves=2 * 2 * steps + d,  # two triangular solves per step, the same backward, and the inverse
        batch=b,
        dim=d,
    )


def make_case(size: Size, setting: BenchSettings) -> Case:
    """The training step at this size."""
    device = setting.device
    return Case(
        str(size),
        "step",
        {name: lambda loss=loss: make_step(loss, size, device) for name, loss in LOSSES.items()},  # type: ignore[misc]
        step_work(size),
        lambda: loss_differences(size, device),
        items=size.batch,
        notes=["synthetic images, a new model"],
    )


def with_steps(sizes: Sequence[Size], steps: Sequence[int]) -> Iterator[Size]:
    """Each size with each T."""
    for size in sizes:
        for t in steps:
            yield Size(size.hidden, size.latent, size.shape, size.batch, t, size.likelihood)


def gaussian(setting: BenchSettings) -> Iterator[Case]:
    """T = 1, 2, 4, 8 at the paper's small and large sizes on CIFAR-10."""
    for size in with_steps([QUICK] if setting.quick else [SMALL, LARGE], [1, 2] if setting.quick else [1, 2, 4, 8]):
        yield make_case(size, setting)


def bernoulli(setting: BenchSettings) -> Iterator[Case]:
    """T = 1, 4 at the paper's large size on binary MNIST."""
    large = Size((500, 500), 50, (1, 28, 28), likelihood="bernoulli")
    quick = Size(QUICK.hidden, QUICK.latent, QUICK.shape, QUICK.batch, likelihood="bernoulli")
    for size in with_steps([quick] if setting.quick else [large], [1] if setting.quick else [1, 4]):
        yield make_case(size, setting)
