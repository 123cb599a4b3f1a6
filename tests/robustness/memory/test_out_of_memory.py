"""Memory that runs out: evaluation goes on in smaller parts with the same numbers, training says what it tried."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import members
from support.models.monitoring import RecordingMonitor
from support.runs.commands import TINY
from torch import Tensor

from vaerun.data.dataset import Split
from vaerun.errors import RunError
from vaerun.estimators import elbo_mc
from vaerun.evaluation import Validator
from vaerun.evaluation import oom as memory
from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.adaptive.amis import adaptive_importance_sampling, amis_bracket
from vaerun.evaluation.latent.statistics import latent_statistics
from vaerun.evaluation.likelihood import importance
from vaerun.evaluation.likelihood.annealed import Annealing, annealed_importance_sampling, bidirectional
from vaerun.evaluation.likelihood.estimates import Estimates, estimates_by_samples
from vaerun.evaluation.likelihood.gaps import Refinement, inference_gaps
from vaerun.evaluation.likelihood.importance import importance_sampling
from vaerun.evaluation.oom import adaptive_batches
from vaerun.memory import is_out_of_memory
from vaerun.models import LatentModel
from vaerun.objectives import Variational
from vaerun.tracking.monitor import SILENT, Monitor

CPU = "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 B"
IMAGES = 11


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes half a second in a process of this size, and there is room enough."""
    monkeypatch.setattr(memory.gc, "collect", lambda: None)


@pytest.fixture
def model() -> LatentModel:
    return members.make_model("amortised", "gaussian", "mlp", "plain").eval()


@pytest.fixture
def split() -> Split:
    pixels = torch.randint(0, 256, (IMAGES, 1, 3, 4), dtype=torch.uint8)
    return Split("test", pixels, torch.arange(IMAGES) % 3, 3, members.TRANSFORMS["plain"], False)


def small_memory(monkeypatch: pytest.MonkeyPatch, images: int, error: Exception) -> list[int]:
    """From now on there is room for so many images at once; the sizes that were tried."""
    tried, joint = [], LatentModel.joint

    def limited(self: LatentModel, x: Tensor, *rest: Any) -> Any:
        tried.append(len(x))
        if len(x) > images:
            raise error
        return joint(self, x, *rest)

    monkeypatch.setattr(LatentModel, "joint", limited)
    return tried


def importance_values(model: LatentModel, split: Split, **options: Any) -> dict[str, Tensor]:
    return importance_sampling(model, split, samples=30, seed=1, chunk=30 * IMAGES, **options)


def annealed_values(model: LatentModel, split: Split, **options: Any) -> dict[str, Tensor]:
    return annealed_importance_sampling(model, split, Annealing(4, 3, adapt=False), seed=1, **options)


def bracketed_values(model: LatentModel, split: Split, **options: Any) -> dict[str, Tensor]:
    return bidirectional(model, Annealing(4, 3, adapt=False), images=IMAGES, seed=1, **options)


def adaptive_values(model: LatentModel, split: Split, **options: Any) -> dict[str, Tensor]:
    amis = Amis(samples=30, starts=1, max_starts=2, rounds=1, max_rounds=2, round_samples=30)
    return adaptive_importance_sampling(model, split, amis, seed=1, chunk=100 * IMAGES, **options)


def adaptive_bracket(model: LatentModel, split: Split, **options: Any) -> dict[str, Tensor]:
    amis = Amis(samples=30, starts=1, max_starts=2, rounds=1, max_rounds=2, round_samples=30)
    return amis_bracket(model, amis, images=IMAGES, seed=1, chunk=100 * IMAGES, **options)


def gap_values(model: LatentModel, split: Split, **options: Any) -> dict[str, Tensor]:
    how = Refinement(samples=2, window=2, max_steps=4)
    return inference_gaps(model, split, how, importance_samples=5, elbo_samples=5, seed=1, **options)


def estimate_values(model: LatentModel, split: Split, **options: Any) -> dict[str, Tensor]:
    amis = Amis(starts=1, max_starts=1, rounds=1, max_rounds=1, round_samples=30)
    return estimates_by_samples(model, split, Estimates(5, 2), amis, seed=1, chunk=500 * IMAGES, **options)


def moments(model: LatentModel, split: Split, **options: Any) -> dict[str, Tensor]:
    result = latent_statistics(model, split, seed=1, **options)
    assert result.labels is not None
    return {"means": result.means, "variances": result.variances, "draws": result.draws, "labels": result.labels}


def validation(model: LatentModel, split: Split, **options: Any) -> dict[str, Tensor]:
    validator = Validator(model, split, estimator=elbo_mc, samples=1, seed=1, batch_size=20, **options)
    first, second = validator(), validator()
    assert first == second  # what memory allowed once is what it is tried with then
    return {name: torch.tensor(value) for name, value in first.items()}


EVALUATIONS = [importance_values, adaptive_values, adaptive_bracket, annealed_values, bracketed_values]
EVALUATIONS += [estimate_values, gap_values, moments, validation]


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_evaluation_goes_on_in_halves(
    evaluation: Callable[..., dict[str, Tensor]], model: LatentModel, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluation(model, split)
    tried = small_memory(monkeypatch, 3, RuntimeError(CPU))
    monitor = RecordingMonitor()
    parts = evaluation(model, split, monitor=monitor)
    lines = monitor.warnings
    assert max(tried) > 3
    assert len(lines) >= 2
    assert all("memory ran out with" in line and "continuing with" in line for line in lines)
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_no_room_for_a_single_image(
    evaluation: Callable[..., dict[str, Tensor]], model: LatentModel, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_memory(monkeypatch, 1 if evaluation is validation else 0, torch.OutOfMemoryError("CUDA out of memory."))
    if evaluation is validation:  # building it looks at one image
        evaluation(model, split)
        return
    with pytest.raises(RunError, match="memory ran out at a batch size of 1: lower evaluation"):
        evaluation(model, split)


def test_other_errors_are_no_lack_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("Storage size calculation overflowed with sizes=[9223372036854775807, 64]"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))

    def fail(start: int, stop: int, at_once: int) -> int:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        list(adaptive_batches(4, 4, fail, monitor=SILENT, task="", setting=""))


def test_a_chunk_is_halved_below_one_image(model: LatentModel, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image's samples may be too many: they are weighed in smaller pieces."""
    whole, compute = importance_values(model, split), importance.importance_statistics

    def limited(joint: Any, q: Any, samples: int, *, chunk: int, monitor: Monitor) -> dict[str, Tensor]:
        if min(samples, chunk // len(joint.x)) * len(joint.x) > 7:
            raise MemoryError
        return compute(joint, q, samples, chunk=chunk, monitor=monitor)

    monkeypatch.setattr(importance, "importance_statistics", limited)
    for name, value in importance_values(model, split).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-10, atol=1e-10)


def test_a_run_notes_it(
    here: Callable[..., tuple[int, str, str]],
    command_environment: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["model=vae", *TINY, "trainer.max_steps=3", f"output_dir={tmp_path / 'run'}"]
    compute = importance.importance_statistics

    def limited(joint: Any, *rest: Any, **options: Any) -> dict[str, Tensor]:
        if len(joint.x) > 10:
            raise RuntimeError(CPU)
        return compute(joint, *rest, **options)

    monkeypatch.setattr(importance, "importance_statistics", limited)
    code, _, err = here(*words, "evaluation.chunk=400")
    assert code == 0
    line = "log-likelihood of test: memory ran out with 400 at once, continuing with 200 (see evaluation.chunk)"
    assert f"vaerun: warning: {line}" in err.splitlines()
    assert line in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError(CPU), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")])
def test_training_says_what_it_tried(
    error: Exception,
    samples: int,
    here: Callable[..., tuple[int, str, str]],
    command_environment: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["model=vae", *TINY, "trainer.max_steps=3", "trainer.batch_size=77", f"output_dir={tmp_path / 'run'}"]
    loss = Variational.loss

    def limited(self: Variational, phase: str, step: int, batch: Any) -> Any:
        if len(batch.x) == 77:
            raise error
        return loss(self, phase, step, batch)

    monkeypatch.setattr(Variational, "loss", limited)
    code, _, err = here(*words, f"estimator.samples={samples}")
    assert code == 1
    _, line = err.splitlines()  # the first says what was read
    tried = (
        "trainer.batch_size=77: lower it"
        if samples == 1
        else "trainer.batch_size=77 and estimator.samples=3: lower them"
    )
    assert line == f"vaerun: error: memory ran out in training with {tried}, or the model's size"


REAL = """
import resource, sys
import torch
from vaerun.evaluation.likelihood.importance import importance_sampling
sys.path.insert(0, sys.argv[1])
from support.models import members
from vaerun.data.dataset import Split
from vaerun.tracking.monitor import Monitor

torch.set_num_threads(1)
torch.manual_seed(0)
model = members.make_model("amortised", "bernoulli", "mlp", "plain").eval()
pixels = torch.randint(0, 256, (2000, 1, 3, 4), dtype=torch.uint8)
split = Split("test", pixels, None, 0, members.TRANSFORMS["dynamic"], False)
small = importance_sampling(model, split, samples=500, seed=1, chunk=4000)
size = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")) * 1024
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + 40 * 2**20, before[1]))
lines = []
large = importance_sampling(model, split, samples=500, seed=1, chunk=1_000_000, monitor=Monitor(warn=lines.append))
resource.setrlimit(resource.RLIMIT_AS, before)  # the comparison imports parts of torch when it is first called
assert lines, "there was room for everything"
assert all("memory ran out" in line for line in lines)
torch.testing.assert_close(small["log_likelihood"], large["log_likelihood"], rtol=1e-5, atol=1e-5)
print(len(lines))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to know how much is in use")
def test_memory_that_really_runs_out(env: dict[str, str]) -> None:
    call = [sys.executable, "-c", REAL, str(Path(__file__).parents[2])]
    done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
