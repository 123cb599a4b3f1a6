"""Advice on run directories that hold another run, and warnings of settings that can never act."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from support.runs.commands import TINY
from support.sweeps.sweeping import settings as tiny_settings

from vaerun.config.overrides import override, parse_overrides
from vaerun.config.plugins import builtin_config_dir
from vaerun.config.schema import Settings
from vaerun.config.settings import to_settings
from vaerun.data.dataset import ImageData
from vaerun.run.build import build_data, build_model
from vaerun.run.idle import idle_settings
from vaerun.run.prepare import prepare
from vaerun.training import TrainPlan

Here = Callable[..., tuple[int, str, str]]
WORDS = ["model=vae", *(word for word in TINY if "amis" not in word), "evaluation.amis=false"]
WORDS += ["data.train_images=64", "trainer.batch_size=32"]


@pytest.fixture
def finished(here: Here, command_environment: None, tmp_path: Path) -> Path:
    """A run of one epoch, two steps, in a folder whose name must be quoted."""
    folder = tmp_path / "my run"
    code, _, err = here(*WORDS, "trainer.epochs=1", override("output_dir", str(folder)))
    assert code == 0, err
    return folder


def command(line: str, name: str) -> list[str]:
    """The words after the name of the command that this line advises to run."""
    found = re.search(rf"run ({name} .*?); or choose another output_dir", line)
    assert found is not None, line
    return shlex.split(found[1])[1:]


def test_a_finished_run_can_be_trained_further_as_advised(finished: Path, here: Here) -> None:
    code, _, err = here(*WORDS, "trainer.epochs=3", override("output_dir", str(finished)))
    assert code == 2
    assert "trainer.epochs is 1 there and 3 here" in err
    words = command(err, "vaerun")
    code, _, err = here(*words)
    assert code == 0, err
    assert "warning" not in err
    longer = json.loads((finished.with_name("my run-2") / "result.json").read_text())
    assert longer["timing"]["train_steps"] == 6
    assert longer["protocol"]["started_from"]["path"].startswith(str(finished))
    # The steps that the first run took are not taken again: with the same data order, both are the same training.
    code, _, _ = here(*WORDS, "trainer.epochs=3", f"output_dir={finished.parent / 'direct'}")
    assert code == 0
    ends = [
        torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["objective"]
        for folder in (finished.with_name("my run-2"), finished.parent / "direct")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_more_steps_and_another_setting(finished: Path, here: Here) -> None:
    into = override("output_dir", str(finished))
    code, _, err = here(*WORDS, "trainer.epochs=2", "seed=1", into)
    assert code == 2
    assert "trainer.epochs is 1 there and 2 here, seed is 0 there and 1 here" in err
    assert "trainer.resume=never" in err
    assert "train it further" not in err  # another seed is another run
    code, _, err = here(*WORDS, "trainer.epochs=1", "trainer.max_steps=1", into)
    assert "trainer.max_steps is null there and 1 here" in err
    assert "train it further" not in err  # it has been trained for longer than that
    code, _, err = here("--check", *WORDS, "trainer.epochs=1", "seed=1", into, "trainer.resume=never")
    assert code == 0, err


def test_another_evaluation_is_run_as_advised(finished: Path, here: Here, evaluate: Here) -> None:
    words = [*WORDS, "trainer.epochs=1", "evaluation.samples=7", "evaluation.latent=false"]
    code, _, err = here(*words, override("output_dir", str(finished)))
    assert code == 2
    assert "evaluation.samples is 20 there and 7 here" in err
    code, out, err = evaluate(*command(err, "vaerun-eval"))
    assert code == 0, err
    assert "K=7" in out


def test_a_shorter_run_cannot_go_on(finished: Path, here: Here) -> None:
    resume = override("trainer.resume", str(finished))
    code, _, err = here("--check", *WORDS, "trainer.max_steps=1", resume)
    assert code == 0, err  # --check does not read the steps of a checkpoint
    code, _, err = here(*WORDS, "trainer.max_steps=1", resume)
    assert code == 2
    assert "has done 2 steps and this run has 1: raise trainer.epochs (or trainer.max_steps)" in err


@pytest.mark.parametrize(
    "value", ["plain", "a b", "a=b", "a,b", "it's", 'a "b" c', "ends in \\", "é", "~x", "[a]", "1", "true", "", "a\\'b"]
)
def test_words_of_advice_are_read_as_written(value: str) -> None:
    assert parse_overrides([override("evaluation.inception_weights", value)]) == {
        "evaluation": {"inception_weights": value}
    }


def test_words_of_other_values() -> None:
    for value in (None, True, False, 3, -1.5, 1e-7, [], [1, 2], ["a b", "c"], [[1], None]):
        assert parse_overrides([override("evaluation.interpolation", value)]) == {
            "evaluation": {"interpolation": value}
        }


# -- settings that can never act --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return build_data(tiny_settings().data, torch.device("cpu"))


def compose(*words: str) -> Settings:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return to_settings(hydra.compose("config", list(words)))


def idle(words: str, data: ImageData) -> list[str]:
    settings = compose(*words.split())
    if settings.data != tiny_settings().data:
        data = build_data(settings.data, torch.device("cpu"))
    return prepare(settings, data, words.split()).idle


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("trainer.early_stopping=3 data.validation=0", "trainer.early_stopping=3 has no effect: there are no"),
        ("trainer.early_stopping=9 trainer.epochs=10", "trainer.early_stopping=9 cannot end the run early"),
        ("trainer.epochs=3 estimator.kl_warmup_epochs=10", "so the KL weight ends at 0.3, not 1"),
        ("trainer.max_steps=11 estimator.kl_warmup_epochs=2", "so the KL weight ends at 0.5, not 1"),
        ("estimator.kl_warmup_epochs=1 estimator.kl_weight=0", "estimator.kl_warmup_epochs has no effect"),
        ("trainer.epochs=2 trainer.max_steps=23", "trainer.max_steps=23 has no effect: trainer.epochs=2 end after 22"),
        ("trainer.epochs=2 evaluation.every=3", "evaluation.every=3 is longer than the training"),
        ("trainer.epochs=1 trainer.log_every=12", "trainer.log_every=12 is longer than the training"),
        ("trainer.epochs=1 trainer.schedule=burda", "trainer.schedule=burda has no effect"),
        ("trainer.max_steps=1 trainer.schedule=cosine", "trainer.schedule=cosine has no effect"),
        ("evaluation.images=361", "evaluation.images=361 has no effect: the test split has 359 images"),
        ("evaluation.amis.images=5000", "evaluation.amis.images=5000 has no effect"),
        ("evaluation.gap.samples=9", "evaluation.gap.samples has no effect: evaluation.gaps=true uses it"),
        ("evaluation.estimate.images=3 evaluation.estimate.repeats=3", "evaluation.estimate.repeats have no effect"),
        ("evaluation.noise.draws=9", "evaluation.noise.draws has no effect"),
        ("evaluation.generated.samples=9", "evaluation.generated.samples has no effect"),
        ("evaluation.amis.enabled=false evaluation.annealing.chains=9", "evaluation.annealing.chains has no effect"),
        ("evaluation.amis.fallback=null evaluation.amis.fallback_images=9", "evaluation.amis.fallback_images has no"),
        ("evaluation.label=1", "evaluation.label has no effect"),
        ("+evaluation.sets.a=[1]", "evaluation.sets.a has no effect"),
        ("model=ae evaluation.samples=9", "evaluation.samples has no effect: a plain autoencoder"),
        ("model=ae +estimator.samples=9", "estimator.samples has no effect: estimator=reconstruction"),
        ("model=ppca trainer.epochs=9 trainer.learning_rate=0.1", "trainer.epochs, trainer.learning_rate have no"),
        ("data.binarize=fixed model.likelihood=bernoulli model.fixed_variance=1", "model.fixed_variance=1 has no"),
        ("data.binarize=fixed model.likelihood=bernoulli trainer.variance_learning_rate=1", "has no variance"),
        ("model.fixed_variance=1 trainer.variance_learning_rate=1", "trainer.variance_learning_rate has no effect"),
        ("model=gan evaluation.quality=false trainer.epochs=1 trainer.winning_steps=12", "trainer.winning_steps=12 is"),
        ("model=gan evaluation.quality=false evaluation.observation.images=9", "evaluation.observation.images has no"),
        ("model=infogan evaluation.quality=false model.codes.continuous=0 model.codes.continuous_weight=2",
         "model.codes.continuous_weight has no effect"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_act(words: str, says: str, digits: ImageData, single_precision: None) -> None:
    lines = idle(f"model=vae {words}", digits)
    assert len(lines) == 1, lines
    assert says in lines[0]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "trainer.early_stopping=8 trainer.epochs=10",
        "trainer.epochs=10 estimator.kl_warmup_epochs=10",
        "trainer.epochs=2 trainer.max_steps=22",
        "trainer.epochs=1 trainer.batch_size=1294",  # defaults longer than the run are not the user's
        "trainer.epochs=2 evaluation.every=2 trainer.schedule=burda trainer.log_every=22",
        "evaluation.images=359 evaluation.amis.images=359",
        "evaluation.gaps=true evaluation.gap.samples=9 evaluation.amis.enabled=false evaluation.amis.samples=9",
        "evaluation.annealing.chains=9",  # of the fallback
        "model=gan evaluation.quality=false evaluation.ais=true evaluation.observation.images=9",
        "model=ppca trainer.device=cpu",
        "evaluation.interpolation=[1,2]",
    ],
)
def test_settings_that_act(words: str, digits: ImageData, single_precision: None) -> None:
    assert idle(f"model=vae {words}", digits) == []


def test_a_warning_in_the_terminal_and_in_the_log(here: Here, command_environment: None, tmp_path: Path) -> None:
    words = [*WORDS, "trainer.epochs=1", "evaluation.every=5", "sweep.jobs=3"]
    code, _, err = here(*words, f"output_dir={tmp_path / 'run'}")
    assert code == 0
    lines = err.splitlines()
    assert lines[0] == "vaerun: warning: sweep.jobs has no effect: this is no sweep (-m)"
    assert lines[1].startswith(
        "vaerun: warning: evaluation.every=5 is longer than the training: the run has 1 epochs, 2"
    )
    assert "evaluation.every=5 is longer" in (tmp_path / "run" / "run.log").read_text()
    code, _, err = here("--check", "-m", *words, "seed=0,1", f"output_dir={tmp_path / 'sweep'}")
    assert code == 0
    assert err.count("evaluation.every=5 is longer") == 1  # for both jobs
    assert "sweep.jobs" not in err


@pytest.mark.parametrize("name", ["vlae_cifar10_quick", "vlae_cifar10_small", "vlae_cifar10_big"])
def test_the_published_comparison_has_no_idle_settings(name: str, digits: ImageData, single_precision: None) -> None:
    data = ImageData("digits", digits.arrays, validation=100)
    data.test.images = data.test.images[:1].expand(10_000, -1, -1, -1)  # as many as CIFAR-10's test images
    for cell in ("vae", "vlae_t4", "vae_iaf_t4"):
        words = [f"experiment={name}", f"cell={cell}"]
        settings = compose(*words)
        plan = TrainPlan(20_000, settings.trainer.batch_size, settings.trainer.epochs * 157)
        assert idle_settings(settings, build_model(settings.model, data.spec), data, plan, words) == []
