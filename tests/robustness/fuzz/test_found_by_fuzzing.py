"""Inputs that fuzzing found to end in a traceback, several lines or a library's warning; each gives one line now."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs.evaluating import SMALL
from support.sweeps import records as sweeping_records

import vaerun as package
from vaerun.cli import data, table
from vaerun.config import plugins
from vaerun.data import sources
from vaerun.errors import InputError

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_environment: None) -> Path:
    """The file of a model in a plug-in package."""
    file = tmp_path / "plugins" / "mutants" / "configs" / "model" / "mutant.yaml"
    file.parent.mkdir(parents=True)
    (file.parents[2] / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    monkeypatch.setattr(plugins, "_trusted", {"mutants"})
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return file


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: x\xe5\n", "mutant.yaml as YAML"),
        (b"name: [x\n", "mutant.yaml as YAML"),
        (b"name: a\0b\n", "mutant.yaml as YAML"),
        (b"a: {b: {c: 1}\n", "mutant.yaml as YAML"),
        (b"defaults:\n- true\n", "defaults must be a list of GROUP: CHOICE, and has True"),
        (b"defaults:\n- [x]\n", "defaults must be a list of GROUP: CHOICE, and has"),
        (b"defaults: 3\n", "defaults must be a list"),
        (b"defaults:\n- a: {b: c}\n", "cannot be composed"),
    ],
)
@pytest.mark.parametrize("way", [["--cfg", "job"], ["--check"]])
def test_a_plugin_s_file(here: Command, mutants: Path, content: bytes, says: str, way: list[str]) -> None:
    mutants.write_bytes(content)
    code, out, err = here(*way, "model=mutant")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["--cfg"], ["--cfg=x"], ["-p"], ["--config-dir"], ["-c"], ["--resolve"], ["-sc"], ["--cfg", "job", "--cfg"],
     ["--cfg", "job", "hydra.searchpath=[x]"], ["--experimental-rerun", "x.pickle"], ["--cfg", "job", "--package=x"],
     ["-c", "hydra", "-p", "model"], ["-m", "trainer.epochs=-1"], ["-m", "data=npz", "data.path='~nobody-here/x'"]],
)  # fmt: skip
def test_flags(here: Command, command_environment: None, words: list[str]) -> None:
    code, out, err = here(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("vaerun: error: ")


def test_a_home_that_there_is_not(
    here: Command, run: Path, evaluate: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown user, and one with neither HOME nor an entry in the password database."""
    nobody = "~nobody-here/x"
    ends = [here("data=npz", f"data.path='{nobody}'"), here("model=vae", *SMALL, f"trainer.resume='{nobody}'")]
    ends += [here("model=vae", *SMALL, "evaluation.quality=true", f"evaluation.inception_weights='{nobody}'")]
    ends += [evaluate(f"run={nobody}"), evaluate(f"run={run}", "data=npz", f"data.path='{nobody}'")]
    for main, words in ((table.main, [nobody]), (table.main, [str(run), "--output", nobody])):
        ends.append((main(words), *capsys.readouterr()))
    for words in (["digits", "--output", nobody], ["mnist", "--root", nobody]):
        ends.append((data.main(words), *capsys.readouterr()))
    for code, out, err in ends:
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert f"{nobody}: no such home directory: write the full path" in err
    for name in ("VAERUN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it returns then
    assert data.main(["mnist"]) == 2
    assert "~/.cache: no such home directory" in capsys.readouterr().err
    with pytest.raises(InputError, match=f"{nobody}: no such home directory"):
        package.load_run(nobody)


@pytest.mark.parametrize("change", [lambda t: t.to(torch.complex64), lambda t: t.to(torch.int64), lambda t: t.bool()])
def test_parameters_of_another_kind(copied: Callable[..., Path], command_environment: None, change: Any) -> None:
    """torch would convert them to floating point, with or without a warning."""
    run = copied("model=vae", *SMALL)
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    name = next(k for k in state["objective"] if k.endswith("weight"))
    state["objective"][name] = change(state["objective"][name])
    torch.save(state, run / "checkpoints" / "best.pt")
    with pytest.raises(InputError, match="is of type"):
        package.load_run(run).model  # noqa: B018


@pytest.mark.parametrize(
    "objective", [torch.ones(2), None, 3, [], {"a": 1}, {"a": [torch.ones(1)]}, {1: torch.ones(1)}]
)
def test_parameters_that_are_none(copied: Callable[..., Path], command_environment: None, objective: Any) -> None:
    run = copied("model=vae", *SMALL)
    torch.save({"objective": objective}, run / "checkpoints" / "best.pt")
    with pytest.raises(InputError, match="cannot use"):
        package.load_run(run).model  # noqa: B018


class Disguised:
    """Pickled as an OrderedDict with a number where this method is."""

    def __init__(self, state: dict[str, Any], method: str) -> None:
        self.state, self.method = state, method

    def __reduce__(self) -> Any:
        return OrderedDict, (), {self.method: 1}, None, iter(self.state.items())


@pytest.mark.parametrize("method", ["values", "items", "keys", "get", "copy", "__len__", "_metadata"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_checkpoint_that_hides_its_methods(
    copied: Callable[..., Path], command_environment: None, method: str, whole: bool
) -> None:
    run = copied("model=vae", *SMALL)
    path = run / "checkpoints" / "best.pt"
    state = torch.load(path, weights_only=True)
    torch.save(
        Disguised(state, method) if whole else state | {"objective": Disguised(state["objective"], method)}, path
    )
    with suppress(InputError):
        package.load_run(run).model  # noqa: B018


def test_an_array_that_is_not_called_one(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "whole.npz", train_images=np.zeros((4, 8, 8), dtype=np.uint8))
    with zipfile.ZipFile(tmp_path / "whole.npz") as old, zipfile.ZipFile(tmp_path / "mnist.npz", "w") as new:
        new.writestr("train_images", old.read("train_images.npy"))
    monkeypatch.setenv("VAERUN_DATA", str(tmp_path))
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    assert data.main(["mnist"]) == 2
    assert "contains no arrays" in capsys.readouterr().err


def test_an_image_whose_metadata_are_cut_short(tmp_path: Path) -> None:
    """The image is read or rejected, without Pillow's warnings."""
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.tiff")
    content = bytearray((tmp_path / "a.tiff").read_bytes())
    at = int.from_bytes(content[4:8], "little")
    content[at + 6 : at + 10] = b"\xff\xff\xff\x7f"  # the count of the first entry of its directory
    (tmp_path / "a.tiff").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"a\.tiff"):
        sources.folder(tmp_path, path=tmp_path, channels=1)


def test_a_source_that_is_none(here: Command, command_environment: None, tmp_path: Path) -> None:
    for target in ("vaerun.data.sources.reason", "vaerun.data.sources.npz"):
        code, _, err = here("--check", f"data.source._target_={target}", f"output_dir={tmp_path / 'run'}")
        assert (code, err.count("\n")) == (2, 1), err


@pytest.mark.parametrize("key", ["steps", "context", "hidden"])
def test_numbers_that_no_tensor_has(here: Command, mutants: Path, key: str) -> None:
    number = "1" + "0" * 400
    for value in (number, "1000000000000000"):
        shown = f"[{value}]" if key == "hidden" else value
        code, out, err = here("--check", "model=vae_iaf", f"model.inference.{key}={shown}")
        assert (code, out, err.count("\n")) == (2, "", 1), err


def test_a_name_longer_than_any_file_s(
    here: Command, command_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = here("--check", f"data.name={'a' * 5000}")
    assert (code, err.count("\n")) == (2, 1)
    assert "too long" in err
    assert list(tmp_path.iterdir()) == []  # nor any parent of it


@pytest.mark.parametrize("key", ["model.family", "sweep.jobs", "data.name", "model.name", "seed", "sweep.table.metric"])
@pytest.mark.parametrize("value", [[], [1, [2]], {"a": []}, None, 1e400])
def test_settings_of_another_type_in_a_table(tmp_path: Path, capsys: Any, key: str, value: Any) -> None:
    """Values that are looked up in sets and dictionaries may be lists."""
    for seed in (0, 1):
        settings = sweeping_records.config(seed=seed)
        *parents, last = key.split(".")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
        sweeping_records.write_run(tmp_path / str(seed), settings, sweeping_records.record(settings, 1.0 + seed))
    for words in (
        ["--list"],
        *(["--rows", "model", "--mix", "all", "--format", form] for form in ("md", "csv", "tex")),
    ):
        code = table.main([str(tmp_path), *words])
        out, err = capsys.readouterr()
        assert (code, err.count("\n"), out == "") in ((0, 0, False), (2, 1, True)), err
    table.main([str(tmp_path), "--rows", "model", "--mix", "all", "--published", "vlae_cifar10"])
    assert capsys.readouterr().err.count("\n") <= 1


@pytest.mark.parametrize(
    "words",
    [
        ["--output", "a" * 5000],
        ["--rows", "a" * 5000],
        ["--where", f"{'a' * 5000}=1"],
        ["--where", f"seed=0x{'f' * 5000}"],
        ["--where", f"seed=1{':1' * 50_000}"],
        ["--where", f"seed={'9' * 5000}"],
        ["--where", f"seed={'[' * 100_000}"],
    ],
)
def test_words_of_a_table(tmp_path: Path, capsys: Any, words: list[str]) -> None:
    settings = sweeping_records.config()
    sweeping_records.write_run(tmp_path / "run", settings, sweeping_records.record(settings, 1.0))
    for folder in (tmp_path, Path("b" * 5000)):
        assert table.main([str(folder), *words]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert len(err) < 6000


def test_keys_without_end(tmp_path: Path, capsys: Any) -> None:
    for seed in (0, 1):
        settings = sweeping_records.config(seed=seed)
        settings["trainer"]["k" * 5000] = seed
        sweeping_records.write_run(tmp_path / str(seed), settings, sweeping_records.record(settings, 1.0))
    assert table.main([str(tmp_path), "--rows", "model"]) == 2
    assert len(capsys.readouterr().err) < 5000


LONG = "0x" + "f" * 5000


@pytest.mark.parametrize(
    "word",
    [
        "evaluation.gap=[8]",
        "evaluation.generated=[{}]",
        "evaluation.noise=3",
        "data=[1]",
        f"evaluation.samples={LONG}",
        f"seed={LONG}",
        f"evaluation.interpolation=[[{LONG}]]",
        f"data.validation={LONG}",
        f"evaluation.annealing.chains={LONG}",
        f"evaluation.samples={'9' * 5000}",
        f"seed=1{':1' * 50_000}",
        "evaluation.arithmetic=[[2]]",
        f"evaluation.arithmetic=['{'9' * 5000}']",
        f"seed={'[' * 100_000}",
        f"seed={'{a: ' * 20_000}",
        "seed=0x1f",
    ],
    ids=lambda word: word[:40],
)
def test_words_of_an_evaluation(copied: Callable[..., Path], evaluate: Command, word: str) -> None:
    code, out, err = evaluate(f"run={copied('model=vae', *SMALL)}", word)
    assert (code, out, err.count("\n")) == (2, "", 1), err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["model=infogan", "model.codes.categorical=[[10]]"],
            "model.codes.categorical must be a list of integers",
        ),
        (["model=gan", "model.discriminator.spectral_norm=abc"], "spectral_norm must be true or false, got abc"),
        (["model=dcgan", "model.generator.batch_norm=1"], "model.generator.batch_norm must be true or false, got 1"),
        (["model=dcgan", "model.discriminator.batch_norm=null"], "batch_norm must be true or false, got None"),
        (["model=dcgan", "model.discriminator.spectral_norm=[]"], "spectral_norm must be true or false, got []"),
        (["model=gan", "estimator.discriminator_steps=1000000000000"], "discriminator_steps must be at most 1000000,"),
        (["model=gan", "evaluation.observation.variances=[[1]]"], "variances must be a list of numbers"),
    ],
)
def test_overrides(here: Command, command_environment: None, tmp_path: Path, words: list[str], says: str) -> None:
    """Values of the wrong type, for models whose keys differ from the default."""
    code, out, err = here(*words, f"output_dir={tmp_path / 'run'}")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", ["{}", "{}=1", "{}=[1", "seed={},1"])
def test_a_word_without_end(here: Command, command_environment: None, word: str) -> None:
    code, out, err = here("--cfg", "job", word.format("evaluation." + "a" * 5000))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert len(err) < 1000
