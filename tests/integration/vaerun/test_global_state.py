"""What a user has set for torch, numpy or matplotlib changes neither a run nor what is computed with its model.


A notebook or a plug-in may set a default type, a default device or seeds for its own purposes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models.user_state import STATES, user_state
from support.runs.commands import FAST_AMIS, assert_same_bits, flat, lasting
from support.runs.evaluating import CHEAP
from torch import Tensor

from vaerun.evaluation.adaptive.adaptation import Amis
from vaerun.evaluation.adaptive.amis import adaptive_importance_sampling
from vaerun.evaluation.likelihood.annealed import Annealing, annealed_importance_sampling, bidirectional
from vaerun.evaluation.likelihood.importance import importance_sampling
from vaerun.evaluation.plots.pictures import likelihood_pictures
from vaerun.run.load import load_run

pytestmark = pytest.mark.usefixtures("command_environment")
WORDS = """model=vlae data=digits data.binarize=dynamic model.likelihood=bernoulli model.latent_dim=2 data.validation=40
model.encoder.hidden=[8] model.decoder.hidden=[8] model.inference.steps=2 trainer.device=cpu trainer.max_steps=6
trainer.batch_size=64 evaluation.samples=20 evaluation.images=6 evaluation.ais=true evaluation.probe=true
evaluation.interpolation=[3,17] evaluation.arrays=true""".split()  # noqa: SIM905
WORDS += FAST_AMIS + CHEAP
OTHERS = [state for state in STATES if state != "nothing"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference") / "run"


@pytest.fixture
def usual(here: Callable[..., tuple[int, str, str]], reference: Path) -> Path:
    """The run of a process in which nothing has been set."""
    if not reference.exists():
        with user_state("nothing"):
            code, _, err = here(*WORDS, f"output_dir={reference}")
        assert code == 0, err
    return reference


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {
        f"{path.name}/{name}": value for path in sorted(folder.glob("*.npz")) for name, value in np.load(path).items()
    }


@pytest.mark.parametrize("state", OTHERS)
def test_a_run_does_not_depend_on_global_state(
    state: str, usual: Path, here: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with user_state(state):
        code, _, err = here(*WORDS, f"output_dir={folder}")
        assert code == 0, err
    record, expected = (json.loads((path / "result.json").read_text()) for path in (folder, usual))
    if state == "threads":  # sums are split among threads, and round differently
        assert record["metrics"] == pytest.approx(expected["metrics"], rel=1e-3)
        return
    assert record["metrics"] == expected["metrics"]
    for name in ("last", "best"):
        assert_same_bits(lasting(folder, name), lasting(usual, name))
    found, wanted = arrays(folder), arrays(usual)
    assert found.keys() == wanted.keys()
    assert all(value.tobytes() == wanted[name].tobytes() for name, value in found.items())
    for figure in (usual / "figures").rglob("*.png"):
        assert (folder / figure.relative_to(usual)).read_bytes() == figure.read_bytes(), figure.name


def computed(folder: Path) -> dict[str, Tensor]:
    """Numbers and pictures of a run's model, computed by calling the library."""
    run = load_run(folder)
    model, test = run.model, run.data.test
    amis = Amis(samples=20, round_samples=20, starts=1, max_starts=2, max_rounds=3)
    annealing = Annealing(temperatures=4, chains=3, leapfrog_steps=2)
    values = {
        "parameters": dict(model.state_dict()),
        "log_likelihood": importance_sampling(model, test, samples=20, seed=0, images=5),
        "amis": adaptive_importance_sampling(model, test, amis, seed=0, images=5),
        "ais": annealed_importance_sampling(model, test, annealing, seed=0, images=5),
        "bdmc": bidirectional(model, annealing, images=5, seed=0),
        "pictures": likelihood_pictures(model, test),
    }
    return flat(values)


@pytest.mark.parametrize("state", OTHERS)
def test_an_opened_run_does_not_depend_on_global_state(state: str, usual: Path) -> None:
    with user_state("nothing"):
        expected = computed(usual)
    with user_state(state):
        before = torch.get_rng_state()
        found = computed(usual)
        assert torch.equal(torch.get_rng_state(), before)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if state == "threads":
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3, equal_nan=True)
        else:
            assert found[name].numpy().tobytes() == value.numpy().tobytes(), name
