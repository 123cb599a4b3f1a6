"""A value of the wrong type is reported in terms of the configuration: no library classes, no Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.runs.adversarial_runs import Command
from support.runs.evaluating import Evaluate

pytestmark = pytest.mark.usefixtures("command_environment")
WORDS = {
    "evaluation.samples=1.5": "evaluation.samples must be an integer, got 1.5",
    "evaluation.samples=[1]": "evaluation.samples must be an integer, got [1]",
    "evaluation.samples=true": "evaluation.samples must be an integer, got True",
    "evaluation.samples=''": "evaluation.samples must be an integer, got ''",
    "evaluation.samples=null": "evaluation.samples must be an integer, got null",
    "trainer.max_steps=abc": "trainer.max_steps must be an integer or null, got 'abc'",
    "trainer.learning_rate=[[1]]": "trainer.learning_rate must be a number, got [[1]]",
    "evaluation.annealing.step_size=null": "evaluation.annealing.step_size must be a number, got null",
    "evaluation.ais=[2]": "evaluation.ais must be true or false, got [2]",
    "evaluation.ais=null": "evaluation.ais must be true or false, got null",
    "model.likelihood=[a]": "model.likelihood must be a string, got ['a']",
    "trainer.device={}": "trainer.device must be a string, got {}",
    "sweep.table.metric=[1]": "sweep.table.metric must be a string or null, got [1]",
    "evaluation.arithmetic=null": "evaluation.arithmetic must be a list of strings, such as [a,b], got null",
    "evaluation.arithmetic=[null]": "evaluation.arithmetic must be a list of strings, such as [a,b], got [None]",
    "trainer.betas=[a]": "trainer.betas must be a list of numbers, such as [0.1,0.2], got ['a']",
    "trainer.betas=null": "trainer.betas must be a list of numbers, such as [0.1,0.2], got null",
    "model.encoder=3": "model.encoder is a group of keys: write model.encoder.KEY=VALUE",
    "model.inference=abc": "model.inference is a group of keys: write model.inference.KEY=VALUE",
    "estimator.function=inf": "estimator.function is a group of keys: write estimator.function.KEY=VALUE",
    "evaluation.sets=1": "evaluation.sets is a group of keys: write evaluation.sets.KEY=VALUE",
    "data.source=1": "data.source is a group of keys: write data.source.KEY=VALUE",
    "model.encoder._target_=inf": "model.encoder: _target_ 'inf' is outside vaerun",
    "model.name=''": "model.name '': use up to 100 letters",
    "model.encoder.activation=rlu": "model.encoder: unknown activation 'rlu'",
    "model.encoder.hidden=3": "model.encoder.hidden must be a list of positive integers",
    "model=draw model.decoder=1": "model.decoder is a group of keys: write model.decoder.KEY=VALUE",
    # not names of choices
    "model=5": "unknown choice model=5. Choices: ae, cgan",
    "model=[1]": "unknown choice model=[1]. Choices: ae, cgan",
    "model={a:1}": "unknown choice model={a:1}. Choices: ae, cgan",
    "estimator=[a]": "unknown choice estimator=[a]. Choices: dreg, elbo",
    "estimator=[[1]]": "unknown choice estimator=[[1]]. Choices: dreg, elbo",
    "data=true": "unknown choice data=true. Choices: cifar10",
    "evaluation=1e30": "unknown choice evaluation=1e30. Choices: adversarial, default",
    "trainer=null": "unknown choice trainer=null. Choices: adversarial, default",
    "network=0.5": "unknown choice network=0.5. Choices: conv",
    "sweep={a:1}": "sweep is a group of keys: write sweep.KEY=VALUE",
    "sweep=5": "sweep is a group of keys: write sweep.KEY=VALUE",
}


@pytest.mark.parametrize("word", WORDS)
def test_refused(here: Command, tmp_path: Path, word: str) -> None:
    code, out, err = here(*word.split(), f"output_dir={tmp_path / 'run'}")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"vaerun: error: {WORDS[word]}")
    assert not re.search(r"Config\b|Error|Dict|NoneType|field of", err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("check", [["--check"], []], ids=["checked", "run"])
@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("seed=range(0)", "the sweep has no jobs: one of its overrides has no values"),
        ("seed=glob(*)", "the sweep has no jobs: one of its overrides has no values"),
        ("model=1e12,1e30", "unknown choice model=1e12. Choices: ae, cgan"),
        ("model=vae,[1]", "unknown choice model=[1]. Choices: ae, cgan"),
        ("trainer=default,null", "unknown choice trainer=null. Choices: adversarial, default"),
        ("seed=interval(0,1)", "interval(A,B) is for searches"),
        ("model=gan,cgan", "unknown key 'model.encoder.activation'"),
    ],
)
def test_words_of_a_sweep(here: Command, tmp_path: Path, word: str, says: str, check: list[str]) -> None:
    also = ["model.encoder.activation=tanh"] if word == "model=gan,cgan" else []
    code, out, err = here("-m", *check, word, *also, f"output_dir={tmp_path / 'sweep'}")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("value", ["2", "[npz]", "null", "{a: 1}"])
def test_the_name_of_an_evaluations_data(run: Path, evaluate: Evaluate, value: str) -> None:
    code, out, err = evaluate(f"run={run}", f"data.name={value}")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "data.name must be a string" in err


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("evaluation.samples=[1]", "evaluation.samples must be an integer, got [1]"),
        ("evaluation.interpolation={}", "evaluation.interpolation must be a list"),
        ("evaluation.arithmetic={a: 1}", "evaluation.arithmetic must be a list"),
        ("evaluation.annealing=[1.5]", "annealing"),
        ("evaluation.sets=[1]", "evaluation.sets"),
        ("data.source=[1]", "data.source"),
    ],
)
def test_words_of_an_evaluation(run: Path, evaluate: Evaluate, word: str, says: str) -> None:
    code, out, err = evaluate(f"run={run}", word)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert "Config" not in err
