"""What all tests share: float64, checked arguments of distributions, a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.distributions import Distribution


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # the tensors are tiny; on a busy machine threads only wait for each other
    # torch.func imports a part of torch that still uses torch.jit.script; the warning is torch's own affair.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def exact_arithmetic() -> Iterator[None]:
    """Identities are tested in float64; whatever a test changes is put back."""
    dtype, checked = torch.get_default_dtype(), Distribution._validate_args
    torch.set_default_dtype(torch.float64)
    Distribution.set_default_validate_args(True)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    Distribution.set_default_validate_args(checked)
