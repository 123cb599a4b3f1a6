"""Memory that runs out anywhere: one line, nothing lost, and the same command goes on to the same bits.

Here it runs out at a call of each function that allocates; support/robustness/fault_injection.py (`memory`) lets it run
out at any call of a run.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL.Image import Image
from support.robustness.fault_injection import SHORTAGES
from support.runs.commands import FAST_AMIS, assert_same_bits, lasting, load

from vaerun import load_run
from vaerun.cli import bench, data, table
from vaerun.data.dataset import Split
from vaerun.errors import InputError, RunError
from vaerun.evaluation.likelihood.validation import Validator
from vaerun.memory import is_out_of_memory, reporting_out_of_memory
from vaerun.models import LatentModel
from vaerun.objectives import Variational
from vaerun.report import comparison, listing
from vaerun.storage import json_files
from vaerun.tracking.tensorboard import EventWriter

pytestmark = pytest.mark.usefixtures("command_environment")
WORDS = """model=vae model.encoder.hidden=[8] model.decoder.hidden=[8] model.latent_dim=2 data.train_images=250
trainer.device=cpu trainer.batch_size=64 trainer.max_steps=8 trainer.log_every=3 trainer.checkpoint_seconds=0
evaluation.images=20 evaluation.samples=20 evaluation.pictures=1 evaluation.arrays=true evaluation.estimates=true
evaluation.estimate.samples=20 evaluation.estimate.repeats=2 evaluation.estimate.images=3""".split()  # noqa: SIM905
WORDS += FAST_AMIS
Call = Callable[..., tuple[int, str, str]]

PLACES = {
    "data": (Split, "__init__", "reading the data set"),
    "model": (torch.nn.Linear, "__init__", "the model does not fit into memory"),
    "a step": (Variational, "loss", "in training with trainer.batch_size=64: lower it"),
    "the optimiser": (torch.optim.Adam, "step", "in training with trainer.batch_size=64: lower it"),
    "a checkpoint": (torch, "save", "while writing"),
    "a validation": (Validator, "__call__", "in training with trainer.batch_size=64"),
    "a record": (json_files, "nonfinite_to_none", "memory ran out"),
    "an event": (EventWriter, "_write", "memory ran out"),
    "a picture": (Image, "save", "memory ran out"),
    "a figure": (FigureCanvasAgg, "draw", "in a step of the evaluation that cannot be split: lower evaluation.images"),
    "decoding": (LatentModel, "decode_mean", "memory ran out"),
    "values per image": (np.lib.format, "write_array", "while writing the evaluation: lower evaluation.images"),
}
"""Where memory runs out: an attribute that is called there, and what the line says of the last call."""


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes half a second in a process of this size, and there is room enough."""
    monkeypatch.setattr("gc.collect", lambda: None)


class Shortage:
    """Counts the calls of an attribute; memory runs out at the n-th one, once it has done its work or before."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str, n: int = 0, error: Exception | None = None):
        self.calls, function = 0, getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == n:
                raise copy.copy(error) if error else MemoryError
            return function(*arguments, **options)

        patch.setattr(owner, name, call)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def counts(here: Call, folder: Path) -> dict[str, int]:
    """How often each attribute is called in a run, which is left in `folder`."""
    path = folder.with_suffix(".json")
    if not path.exists():
        with pytest.MonkeyPatch.context() as patch:
            shortages = {name: Shortage(patch, *place[:2]) for name, place in PLACES.items()}
            assert here(*WORDS, f"output_dir={folder}")[0] == 0
        path.write_text(json.dumps({name: shortage.calls for name, shortage in shortages.items()}))
    found: dict[str, int] = json.loads(path.read_text())
    assert min(found.values()) > 0, found
    return found


def only_line(err: str) -> str:
    """The only line beside those of any run."""
    (line,) = (line for line in err.splitlines() if not line.startswith(("epoch ", "vaerun: data: ")))
    return line


def run_short_of_memory(
    here: Call, place: str, n: int, error: Exception, folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Run until memory runs out at the n-th call, then once more to the end; the line that was reported."""
    with monkeypatch.context() as patch:
        Shortage(patch, *PLACES[place][:2], n, error)
        code, out, err = here(*WORDS, f"output_dir={folder}")
    begun = (folder / "result.json").exists()
    assert (code, out) == (1 if begun else 2, ""), err
    line = only_line(err)
    assert line.startswith("vaerun: error: ")
    if begun:
        record = json.loads((folder / "result.json").read_text())
        assert record["status"] in ("failed", "running")  # running: it was the record that memory ran out for
        assert "Traceback" not in (folder / "run.log").read_text() if (folder / "run.log").exists() else True
        for name in ("last", "best"):
            if (folder / "checkpoints" / f"{name}.pt").exists():
                load(folder, name)
    assert list(folder.rglob("*.tmp")) == []
    code, _, err = here(*WORDS, f"output_dir={folder}")
    assert code == 0, err
    for name in ("last", "best"):
        assert_same_bits(lasting(folder, name), lasting(whole, name))
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    with np.load(folder / "per_example.npz") as found, np.load(whole / "per_example.npz") as expected:
        assert all(found[name].tobytes() == value.tobytes() for name, value in expected.items())
    return line


@pytest.mark.parametrize("place", PLACES)
def test_memory_runs_out_in_a_run(
    place: str, here: Call, counts: dict[str, int], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = SHORTAGES[list(PLACES).index(place) % len(SHORTAGES)]
    line = run_short_of_memory(here, place, counts[place], error, tmp_path / "run", folder, monkeypatch)
    assert PLACES[place][2] in line
    assert "memory" in line


@pytest.mark.slow
@pytest.mark.parametrize("error", SHORTAGES, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_every_kind_of_shortage(
    place: str,
    error: Exception,
    here: Call,
    counts: dict[str, int],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n = 1 + counts[place] // 2
    assert "memory" in run_short_of_memory(here, place, min(n, counts[place]), error, tmp_path, folder, monkeypatch)


@pytest.mark.parametrize("error", SHORTAGES, ids=str)
def test_an_evaluation_changes_nothing_without_memory(
    error: Exception,
    evaluate: Call,
    here: Call,
    counts: dict[str, int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with monkeypatch.context() as patch:
        Shortage(patch, np.lib.format, "write_array", 2, error)
        code, out, err = evaluate(f"run={folder}", "evaluation.samples=10", "evaluation.estimates=false", "seed=5")
    assert (code, out) == (1, "")
    expected = "vaerun-eval: error: memory ran out while writing the evaluation: lower evaluation.images"
    assert only_line(err).startswith(expected)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_run_that_cannot_be_opened(counts: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that there was no memory to read is not damaged."""
    for owner, name in ((torch, "load"), (torch.nn.Linear, "__init__")):
        with monkeypatch.context() as patch:
            Shortage(patch, owner, name, 1, MemoryError())
            with pytest.raises(InputError, match=r"^memory ran out .*: use a machine with more memory$"):
                load_run(folder).model  # noqa: B018


def test_other_commands(
    counts: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [
        (table.main, [str(folder.parent)], listing, "to_markdown", "choose fewer runs with --where"),
        (table.main, [str(folder.parent), "--rows=model"], comparison, "compare", "choose fewer runs with --where"),
        (data.main, ["digits", "--output", str(folder)], np, "savez_compressed", "use a machine with more memory"),
        (bench.main, ["vae", "--quick"], torch, "rand", "name fewer benchmarks"),
    ]
    for main, words, owner, name, lower in commands:
        with monkeypatch.context() as patch:
            Shortage(patch, owner, name, 1, MemoryError())
            assert main(words) == 1
        assert f"error: memory ran out: {lower}" in only_line(capsys.readouterr().err)


def test_what_follows_from_a_shortage_counts() -> None:
    def fail(first: Exception, then: Exception, cause: bool) -> None:
        try:
            raise first
        except Exception as error:
            if cause:
                raise then from error
            raise then  # noqa: B904

    for first in SHORTAGES:
        for then in (RuntimeError("unexpected pos 64 vs 0"), InputError("run.pt is damaged: remove it")):
            with pytest.raises(RunError, match=r"^lower it$"), reporting_out_of_memory(RunError, "lower it"):
                fail(first, then, cause=isinstance(then, InputError))
    with (
        pytest.raises(RunError, match=r"^inner$"),
        reporting_out_of_memory(RunError, "outer"),
        reporting_out_of_memory(RunError, "inner"),
    ):
        raise MemoryError
    # A line that quotes a user says nothing of this machine.
    for other in (InputError("data.name=out of memory"), OSError(28, "No space left on device"), KeyError("memory")):
        assert not is_out_of_memory(other)
