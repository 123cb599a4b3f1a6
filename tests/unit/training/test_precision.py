"""Training in lower precision: its error is checked on the first batch, and evaluations stay in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs.captured_steps import step_of
from support.runs.commands import SHORT
from support.runs.processes import MODELS
from torch import nn

from vaerun.errors import RunError
from vaerun.training import precision
from vaerun.training.precision import check_precision, compare_with_float32, matmul_precision

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("single_precision")


@pytest.mark.parametrize("name", ["vae", "vlae", "vlae of binary pixels", "sa_vae", "vae_hf", "vae_iaf", "gan"])
def test_bf16_is_near_float32(name: str) -> None:
    step = step_of(MODELS[name], precision="bf16")
    before = {k: v.clone() for k, v in step.mutable_tensors().items()}
    by_phase = step.compare_precision()
    assert list(by_phase) == list(step.objective.phases)
    for differences in by_phase.values():
        assert 0 < differences["gradient"] < precision.TOLERANCES["bf16"][1]
    for key, value in step.mutable_tensors().items():
        assert torch.equal(value, before[key]), key


def test_bf16_steps_train() -> None:
    """Layers compute in bfloat16; parameters and sums stay in float32."""
    step = step_of(MODELS["vae"], precision="bf16")
    dtypes = set()
    layer = step.objective.model.decoder.stack.layers[0]  # type: ignore[attr-defined]
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    before = layer.weight.clone()
    step.begin(0, 1.0)
    step.run(0, [torch.arange(8)])
    assert dtypes == {torch.bfloat16}
    assert layer.weight.dtype == torch.float32
    assert not torch.equal(layer.weight, before)
    assert all(total.dtype == torch.float32 for total in step.sums.values())


def test_what_differs_too_much_is_refused() -> None:
    """A loss that bfloat16 cannot represent: 1 + 2^-10 rounds to 1."""
    weight = nn.Parameter(torch.full((4, 4), 1 + 2.0**-10))

    def loss() -> Any:
        return ((torch.eye(4) @ weight).diagonal() - 1).square().sum() * 1e6

    with pytest.raises(RunError, match=r"trainer\.precision=bf16 is too inaccurate for this model: on the first batch"):
        compare_with_float32(loss, [weight], "bf16", CPU)
    assert compare_with_float32(lambda: (torch.eye(4) @ weight).sum(), [weight], "bf16", CPU)["gradient"] < 0.01


def test_names_and_devices() -> None:
    check_precision("bf16", CPU)
    with pytest.raises(ValueError, match="unknown precision 'float16'"):
        check_precision("float16", CPU)
    before = torch.get_float32_matmul_precision()
    with matmul_precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.usefixtures("command_environment")
def test_a_full_covariance(here: Any, tmp_path: Path) -> None:
    """It needs triangular solves, which bfloat16 does not have."""
    words = ["estimator=elbo_mc", "trainer.precision=bf16", "trainer.max_steps=3"]
    code, _, err = here("model=vae_full", *SHORT, *words, f"output_dir={tmp_path}/run")
    assert code == 0, err


@pytest.mark.usefixtures("command_environment")
def test_a_run_records_its_precision(here: Any, tmp_path: Path) -> None:
    code, _, err = here("model=vlae", *SHORT, "trainer.precision=bf16", f"output_dir={tmp_path}/run")
    assert code == 0, err
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(record["protocol"]["precision_difference"]["model"]) == {"loss", "gradient"}
    code, _out, err = here("model=vae", *SHORT, "trainer.precision=tf32", f"output_dir={tmp_path}/other")
    assert code == 2
    assert err == (
        "vaerun: error: trainer.precision=tf32 needs an NVIDIA GPU of compute capability 8.0 or later, and this run is "
        "on cpu: use trainer.precision=float32\n"
    )
    assert not (tmp_path / "other").exists()
