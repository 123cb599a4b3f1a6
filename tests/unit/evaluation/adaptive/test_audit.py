"""The listings of docs/audit.md run as printed, and show what the document says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models.precision import set_precision
from torch.distributions import Normal

ROOT = Path(__file__).parents[4]
LISTINGS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "audit.md").read_text(), flags=re.MULTILINE | re.DOTALL
)
DATA, PYTHAE, PROGRAM, DECODER = LISTINGS

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")


@pytest.fixture(autouse=True)
def _float32() -> Any:
    default = torch.get_default_dtype()
    set_precision(torch.float32)  # as for a reader of the document
    yield
    set_precision(default)


def images() -> dict[str, Any]:
    """What the first listing defines; digits of scikit-learn if MNIST is not there."""
    namespace: dict[str, Any] = {}
    if (Path(os.environ.get("VAERUN_DATA", "")) / "mnist.npz").is_file():
        exec(DATA, namespace)
        return namespace
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    grey = torch.tensor(load_digits().images / 16).float().unsqueeze(1)
    return {"train": grey[:1500].bernoulli(), "test": grey[1500:].bernoulli()}


def run(listing: str, namespace: dict[str, Any]) -> Any:
    exec(listing, namespace)
    return namespace["result"]


def test_listings_are_short() -> None:
    assert all(len(listing.strip().splitlines()) < 30 for listing in LISTINGS)


def test_probabilistic_program() -> None:
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    result = run(PROGRAM, namespace)
    y, sigma = namespace["y"].numpy(), namespace["sigma"].numpy()
    mean, log_scale = np.linspace(-40, 40, 1601)[:, None], np.linspace(-14, 9, 1601)[None]
    scale = np.exp(log_scale)
    log_f = -0.5 * (mean / 5) ** 2 - np.log(5 * np.sqrt(2 * np.pi))  # N(0, 5^2)
    log_f = log_f + np.log(2 / (5 * np.pi)) - np.log1p((scale / 5) ** 2) + log_scale  # half-Cauchy of scale 5
    for value, deviation in zip(y, sigma, strict=True):
        variance = deviation**2 + scale**2
        log_f = log_f - 0.5 * (value - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    exact = np.log(np.exp(log_f).sum() * 0.05 * 23 / 1600)
    print(f"exact {exact:.4f}")
    assert abs(float(result.log_likelihood[0]) - exact) < 4 * float(result.standard_error[0]) < 0.1
    assert float(result.pareto_k[0]) < 0.7


@pytest.mark.slow
def test_plain_decoder() -> None:
    result = run(DECODER, images())
    width = result.upper - result.log_likelihood
    assert float(width.mean()) < 0.1
    assert float((result.pareto_k > 0.7).double().mean()) < 0.1


@pytest.mark.slow
def test_pythae() -> None:
    pytest.importorskip("pythae")
    namespace = images()
    result = run(PYTHAE, namespace)
    model, x, nll = namespace["model"], namespace["x"], namespace["nll"]
    # get_nll is an estimate of log p(x), not of its negative, by importance sampling from q: from below, as this one.
    assert all(value < 0 for value in nll.values())
    assert nll[100] < nll[2000] < float(result.log_likelihood.mean()) + 0.05

    def by_hand(samples: int) -> float:
        with torch.no_grad():
            encoded = model.encoder(x)
            q = Normal(encoded.embedding, (0.5 * encoded.log_covariance).exp())
            z = q.sample((samples,))
            log_w = namespace["log_joint"](z) - q.log_prob(z).sum(-1)
        return float((torch.logsumexp(log_w, 0) - np.log(samples)).mean())

    assert abs(by_hand(2000) - nll[2000]) < 0.3
    torch.manual_seed(1)
    one = model.get_nll(x[:2], n_samples=1)
    torch.manual_seed(1)
    assert model.get_nll(x[:2], n_samples=100) == one  # never fewer samples than batch_size
