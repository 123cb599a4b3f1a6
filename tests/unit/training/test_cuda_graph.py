"""A captured step equals the eager step: nothing variable is baked in, and capturing changes nothing."""

from __future__ import annotations

import pytest
import torch
from support.runs.captured_steps import captured, settings_of, state, step_of, steps
from support.runs.commands import assert_same_bits
from support.runs.processes import MODELS, Case
from support.runs.tape import Tape
from torch import Tensor, nn

from vaerun.config.schema import TrainerSettings
from vaerun.data.dataset import Batch
from vaerun.errors import InputError, RunError
from vaerun.objectives import Diagnostics, Phase
from vaerun.run.preflight import check_step_options
from vaerun.training.cuda_graph import capture_step

pytestmark = pytest.mark.usefixtures("single_precision")


@pytest.mark.parametrize("name", MODELS)
def test_replays_are_the_steps(name: str) -> None:
    """Every family, over epochs with ragged last batches: the same bits in parameters, moments, buffers and sums."""
    plain, other = step_of(MODELS[name]), step_of(MODELS[name], source=True)
    graphed = captured(other, tape=Tape)
    steps(plain, plain, 0, 9)
    steps(graphed, other, 0, 9)
    assert_same_bits(state(other), state(plain))
    assert sum(tape.replays for tape in graphed.graphs.values()) == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["vae", "vae with warm-up", "gan", "infogan"])
def test_recording_changes_nothing_and_goes_on_from_any_step(name: str) -> None:
    straight, first = step_of(MODELS[name]), step_of(MODELS[name])
    steps(straight, straight, 0, 8)
    steps(first, first, 0, 5)
    before = state(first)
    graphed = captured(first, 5, tape=Tape)
    assert_same_bits(state(first), before)
    steps(graphed, first, 5, 8)
    assert_same_bits(state(first), state(straight))


class Wrong(nn.Module):
    """An objective whose loss is not finite at step `bad`, or that reads a value on the host."""

    def __init__(self, bad: int = -1, reads: bool = False) -> None:
        super().__init__()
        self.w, self.bad, self.reads = nn.Parameter(torch.ones(())), bad, reads
        self.phases = {"model": Phase({"network": [self.w]})}

    def loss(self, phase: str, step: int | Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch.x.flatten(1).mean(1)
        value = self.w * x * torch.where(torch.as_tensor(step) == self.bad, torch.nan, 1.0)
        if self.reads and float(value.detach().sum()) > 1e9:
            value = 2 * value
        return value, {"kl": value.detach(), "reconstruction": x}

    def after_step(self, step: int | Tensor) -> None:
        """Nothing."""

    def diagnostics(self) -> Diagnostics:
        return Diagnostics()


def test_a_bad_step_is_not_made_and_named() -> None:
    step = step_of(Case(lambda split: Wrong(bad=5)))
    graphed = captured(step, tape=Tape)
    steps(graphed, step, 0, 5)
    assert step.guard.mutable_tensors[0] == -1
    before = state(step)
    steps(graphed, step, 5, 6)
    after = state(step)
    assert_same_bits(
        {k: v for k, v in after.items() if k[0] == "objective"}, {("objective", "w"): before["objective", "w"]}
    )
    steps(graphed, step, 6, 8)
    with pytest.raises(RunError, match="stopped at step 6: the term 'kl' is not finite"):
        step.reduce_metrics()


def test_what_looks_at_numbers_cannot_be_recorded() -> None:
    step = step_of(Case(lambda split: Wrong(reads=True)))
    before = state(step)
    with pytest.raises(RuntimeError, match="not permitted"):
        captured(step, tape=Tape)
    after = state(step)
    assert_same_bits({k: after[k] for k in before}, before)


def test_on_a_cpu_steps_are_made_each_time() -> None:
    step = step_of(MODELS["vae"])
    assert step.settings.compile == "none"
    for compile in ("none", "auto"):
        step.settings = settings_of(MODELS["vae"], compile=compile)
        assert capture_step(step, step.settings.plan(len(step.split)), 1, 0, print) is step
    with pytest.raises(InputError, match=r"trainer\.compile=graph needs a CUDA GPU, and this run is on cpu"):
        check_step_options(TrainerSettings(compile="graph"), torch.device("cpu"))
    with pytest.raises(InputError, match=r"trainer\.precision=tf32 needs an NVIDIA GPU"):
        check_step_options(TrainerSettings(precision="tf32"), torch.device("cpu"))
