"""VLAE training step: vaerun's Gram path against a careful explicit-Jacobian form, interleaved in one run.

    python scripts/bench_vlae.py                 # B=128, D=3072, 2 x 500, d=50, T=4: some two minutes on two cores
    python scripts/bench_vlae.py --json out.json

The explicit form below is the textbook algorithm with the usual care taken: ReLU masks instead of autograd for the
Jacobian, one Cholesky factorisation and triangular solves instead of inverses, the same Adam. Both do forward,
backward and update from the same parameters with the same noise; losses and gradients are compared before timing.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vaerun.estimators import elbo
from vaerun.inference import Laplace
from vaerun.models import Gaussian, LatentModel
from vaerun.nets import MLPDecoder, MLPEncoder


def explicit_loss(model: LatentModel, x: Tensor, noise: Tensor) -> Tensor:
    """-ELBO [B] by the D x d Jacobian; x [B, C, H, W], noise [B, d]."""
    inference, decoder, likelihood = model.inference, model.decoder, model.likelihood
    assert isinstance(inference, Laplace)
    assert isinstance(decoder, MLPDecoder)
    assert isinstance(likelihood, Gaussian)
    assert inference.encoder is not None
    assert inference.mean is not None
    assert decoder.affine is not None
    flat, precision = x.flatten(1), torch.exp(-likelihood.log_variance)
    eye = torch.eye(model.latent_dim, device=x.device)

    def linearise(mu: Tensor) -> tuple[Tensor, Tensor]:
        h, jacobian = mu, None
        for layer in decoder.stack.layers:
            pre = layer(h)
            mask = (pre > 0).to(pre.dtype).unsqueeze(-1)
            h = torch.relu(pre)
            jacobian = mask * (layer.weight if jacobian is None else layer.weight @ jacobian)  # [B, H, d]
        jacobian = decoder.affine.weight @ jacobian  # [B, D, d]
        residual = flat - (decoder.affine(h) + model.offset.flatten())
        gradient = (jacobian.mT @ residual.unsqueeze(-1)).squeeze(-1) * precision - mu
        return gradient, jacobian.mT @ jacobian * precision + eye

    mu = inference.mean(inference.encoder(x - model.mean))
    for t in range(inference.steps):
        gradient, curvature = linearise(mu)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), torch.linalg.cholesky(curvature)).squeeze(-1)
        mu = mu + inference.rate(t) * step
    _, curvature = linearise(mu)
    factor = torch.linalg.cholesky(curvature)
    z = mu + torch.linalg.solve_triangular(factor.mT, noise.unsqueeze(-1), upper=True).squeeze(-1)
    log_likelihood = likelihood.log_prob(x, model.decoder(z) + model.offset)
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    kl = 0.5 * (inverse.square().sum((-2, -1)) + mu.square().sum(-1) - model.latent_dim + log_det)
    return kl - log_likelihood


def gram_loss(model: LatentModel, x: Tensor, noise: Tensor) -> Tensor:
    """-ELBO [B] by vaerun's own path, same arguments."""
    joint = model.joint(x, noise=lambda stream, k: noise.expand(k, -1, -1))
    return -elbo(joint, model.infer(joint), 1).bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128, help="B, images a step")
    parser.add_argument("--shape", type=int, nargs=3, default=[3, 32, 32], help="C H W")
    parser.add_argument("--hidden", type=int, nargs="+", default=[500, 500])
    parser.add_argument("--latent", type=int, default=50, help="d")
    parser.add_argument("--steps", type=int, default=4, help="T")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved pairs, at least 5")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("--rounds must be at least 5")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*is deprecated")

    torch.manual_seed(0)
    device, shape, d = torch.device(options.device), options.shape, options.latent
    x = torch.rand(options.batch, *shape, device=device)
    encoder, decoder = MLPEncoder(shape, hidden=options.hidden), MLPDecoder(d, shape, hidden=options.hidden)
    inference = Laplace(encoder, d, steps=options.steps)
    first = LatentModel(decoder, Gaussian(float(x.var())), inference, latent_dim=d, mean=x.mean(0).cpu()).to(device)
    noise = torch.randn(options.batch, d, device=device)

    Loss = Callable[[LatentModel, Tensor, Tensor], Tensor]
    forms: dict[str, Loss] = {"gram path": gram_loss, "explicit Jacobian": explicit_loss}

    def loss_and_gradient(loss: Loss, dtype: torch.dtype) -> tuple[float, Tensor]:
        model = copy.deepcopy(first).to(dtype)
        value = loss(model, x.to(dtype), noise.to(dtype)).mean()
        value.backward()
        return value.item(), torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])

    # Both against the explicit form in float64: in float32 a unit may fall on the other side of its kink.
    exact_loss, exact_gradient = loss_and_gradient(explicit_loss, torch.float64)
    differences = {}
    for name, loss in forms.items():
        value, gradient = loss_and_gradient(loss, torch.float32)
        differences[name] = {
            "loss": abs(value / exact_loss - 1),
            "gradient": float((gradient - exact_gradient).norm() / exact_gradient.norm()),
        }

    models = {name: copy.deepcopy(first) for name in forms}
    optimisers = {name: torch.optim.Adam(models[name].parameters(), 5e-4, fused=True) for name in forms}

    def step(name: str) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        optimisers[name].zero_grad()
        forms[name](models[name], x, noise).mean().backward()
        optimisers[name].step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for name in forms:
        step(name), step(name)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name in forms:
            times[name].append(step(name))
    ratios = [e / g for g, e in zip(times["gram path"], times["explicit Jacobian"], strict=True)]

    dims = math.prod(shape)
    print(
        f"VLAE step (forward, backward, Adam): B={options.batch} D={dims} hidden={options.hidden} d={d} "
        f"T={options.steps}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, values in times.items():
        print(f"{name:<18} median {statistics.median(values):.3f} s   from {min(values):.3f} to {max(values):.3f}")
    print(f"ratio of pairs     median {statistics.median(ratios):.2f}     from {min(ratios):.2f} to {max(ratios):.2f}")
    for name, found in differences.items():
        words = ", ".join(f"{what} {value:.1e}" for what, value in found.items())
        print(f"{name:<18} relative difference from the explicit form in float64: {words}")
    if options.json is not None:
        figures = {"times_s": times, "ratios": ratios, "differences": differences}
        options.json.write_text(
            json.dumps(figures | {"options": vars(options) | {"json": str(options.json)}}, indent=2)
        )


if __name__ == "__main__":
    main()
