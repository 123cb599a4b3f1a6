"""The console command as a user meets it, and the run directory that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from support.runs.commands import SHORT, assert_same_scalars, records, shell, state, tensorboard

import vaerun
from vaerun.cli.help import GROUPS
from vaerun.config.identity import fingerprint
from vaerun.config.plugins import builtin_config_dir
from vaerun.data.description import data_line
from vaerun.errors import InputError

pytestmark = pytest.mark.usefixtures("command_environment")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> SimpleNamespace:
    """The default run, shortened, in its default folder."""
    cwd = tmp_path_factory.mktemp("work")
    done = shell(SHORT, cwd, env)
    assert done.returncode == 0, done.stderr
    (result,) = cwd.glob("outputs/digits/vlae/elbo-seed0-*/result.json")
    return SimpleNamespace(cwd=cwd, folder=result.parent, result=json.loads(result.read_text()), done=done)


# --- the run directory ---


def test_result(finished: SimpleNamespace) -> None:
    r = finished.result
    assert (r["schema"], r["status"], r["error"]) == (1, "ok", None)
    assert (r["model"], r["data"], r["estimator"], r["seed"]) == ("vlae", "digits", "elbo", 0)
    assert r["command"] == ["vaerun", *SHORT]
    assert len(r["fingerprint"]) == 64
    int(r["fingerprint"], 16)
    m, p = r["metrics"], r["protocol"]
    assert m["test/elbo"] == pytest.approx(m["test/reconstruction"] - m["test/kl"])
    assert m["test/elbo"] < m["test/log_likelihood"]
    assert m["test/log_likelihood_se"] > 0
    validations = {x["epoch"]: x["val/elbo"] for x in records(finished.folder) if "val/elbo" in x}
    assert m["val/elbo"] == max(validations.values())
    assert validations[p["selected_epoch"]] == m["val/elbo"]
    assert (p["units"], p["likelihood"], p["binarize"], p["dequantize"]) == (
        "nats per image",
        "gaussian",
        "none",
        False,
    )
    assert (p["importance_samples"], p["evaluated_images"]) == (20, 20)
    assert p["images"] == {"train": 1298, "validation": 140, "test": 359}
    assert len(p["data_sha256"]) == 64
    assert "20% test" in p["split"]
    t = r["timing"]
    assert t["train_steps"] == 25
    assert t["images_per_second"] == pytest.approx(1298 / 11 * t["steps_per_second"])  # 11 steps an epoch
    assert t["train_seconds"] > 0
    assert t["evaluation_seconds"] > 0
    assert {"python", "torch", "vaerun", "device", "numpy"} <= r["environment"].keys()
    assert r["environment"]["device"] == "cpu"


def test_terminal_is_plain_and_quiet(finished: SimpleNamespace) -> None:
    out, err = finished.done.stdout, finished.done.stderr
    for text in (out, err):
        assert "\r" not in text
        assert "\x1b" not in text
    data, *lines = err.splitlines()
    assert data == f"vaerun: {data_line('digits', finished.result['dataset'])}"
    assert f" INFO {data.removeprefix('vaerun: ')}\n" in (finished.folder / "run.log").read_text()
    assert all(line.startswith("epoch ") for line in lines)
    assert len(lines) <= 3
    value, error = (
        finished.result["metrics"]["test/log_likelihood"],
        finished.result["metrics"]["test/log_likelihood_se"],
    )
    (row,) = [line for line in out.splitlines() if line.startswith("test/log_likelihood")]
    assert f"{value:.2f} ± {error:.2f}" in row
    assert "K=20" in row
    assert str(finished.folder) in out.splitlines()[-1]


def test_metrics_and_tensorboard_agree(finished: SimpleNamespace) -> None:
    lines = records(finished.folder)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    assert [x["step"] for x in lines if "train/elbo" in x] == [5, 10, 15, 20, 25]
    assert [x["step"] for x in lines if "val/elbo" in x] == [11, 22, 25]
    events = tensorboard(finished.folder)
    assert_same_scalars(events, lines)
    names = ("data", "reconstructions", "samples", "manifold", "posterior_means", "aggregate_posterior")
    images = {f"images/{name}" for name in (*names, "kl_by_dimension")}
    assert set(events.Tags()["images"]) == images
    hparams = events.summary_metadata
    assert {t for t in hparams if hparams[t].plugin_data.plugin_name == "hparams"} >= {
        "_hparams_/session_start_info",
    }
    assert len(list(finished.folder.glob("events.*"))) == 1


def test_files_of_the_run(finished: SimpleNamespace) -> None:
    folder, metrics = finished.folder, finished.result["metrics"]
    with np.load(folder / "per_example.npz") as arrays:
        for name in ("log_likelihood", "elbo", "kl", "reconstruction"):
            assert arrays[name].shape == (20,)
            assert arrays[name].mean() == pytest.approx(metrics[f"test/{name}"], rel=1e-12)
        deviation = arrays["log_likelihood"].std(ddof=1)
        assert metrics["test/log_likelihood_se"] == pytest.approx(deviation / np.sqrt(20))
    # Grids of 8x8 images, a pixel between them: 10 columns of 5 or 10 rows; the manifold is 20x20.
    sizes = {"data": (331, 166), "reconstructions": (331, 166), "samples": (331, 331), "manifold": (661, 661)}
    charts = {"kl_by_dimension", "posterior_means", "aggregate_posterior"}
    assert {p.stem for p in (folder / "figures").iterdir()} == sizes.keys() | charts
    for name, size in sizes.items():
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert (image.format, image.size) == ("PNG", size)
            assert np.asarray(image).std() > 0
    assert {p.name for p in (folder / ".hydra").iterdir()} == {"config.yaml", "overrides.yaml", "hydra.yaml"}
    assert yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) == SHORT
    assert yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())["trainer"]["max_steps"] == 25
    assert {p.name for p in (folder / "checkpoints").iterdir()} >= {"last.pt", "best.pt"}
    assert "done" in (folder / "run.log").read_text()
    assert not list(folder.rglob("*.tmp"))


def test_same_command_again(finished: SimpleNamespace, env: dict[str, str]) -> None:
    before = state(finished.cwd)
    again = shell(SHORT, finished.cwd, env)
    assert again.returncode == 0
    assert again.stderr == ""
    ends, _, table = finished.done.stdout.partition("\n")
    assert ends.startswith("hardest of 20 test images")  # of the evaluation: not shown again
    assert again.stdout == f"already finished: {finished.folder}\n{table}"
    assert state(finished.cwd) == before


def test_resume_never_is_a_folder_of_its_own(
    finished: SimpleNamespace, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.cwd)
    before = state(finished.folder)
    assert here(*SHORT, "trainer.resume=never")[0] == 0
    assert state(finished.folder) == before
    other = finished.folder.with_name(f"{finished.folder.name}-2")
    result = json.loads((other / "result.json").read_text())
    assert result["metrics"] == finished.result["metrics"]
    assert result["fingerprint"] == finished.result["fingerprint"]


def test_load_run(finished: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.cwd)
    run = vaerun.load_run(finished.folder)
    assert run.result == finished.result
    assert (run.config.model.latent_dim, run.config.trainer.max_steps) == (2, 25)
    assert [len(s) for s in (run.data.train, run.data.validation, run.data.test)] == [1298, 140, 359]
    log_likelihood = vaerun.log_likelihood(run.model, run.data.test.batch(0, 20).x, samples=20)
    with np.load(finished.folder / "per_example.npz") as arrays:
        np.testing.assert_allclose(log_likelihood.numpy(), arrays["log_likelihood"], rtol=1e-6)
    assert run.model.sample(3).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("attack", ["os.system", "os.system, fingerprint too", "interpolation", "yaml tag", "no run"])
def test_load_run_runs_nothing(attack: str, finished: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    text, result = (finished.folder / ".hydra" / "config.yaml").read_text(), dict(finished.result)
    proof = tmp_path / "proof"
    if attack.startswith("os.system"):
        plain = yaml.safe_load(text)
        plain["model"]["encoder"] = {"_target_": "os.system", "command": f"touch {proof}"}
        text = yaml.safe_dump(plain)
        if "fingerprint" in attack:
            result["fingerprint"] = fingerprint(plain, result["protocol"]["data_sha256"])
    elif attack == "interpolation":
        text = text.replace("name: digits", "name: ${oc.env:HOME}")
    elif attack == "yaml tag":
        text += f"evil: !!python/object/apply:os.system ['touch {proof}']\n"
    (tmp_path / ".hydra" / "config.yaml").write_text(text)
    if attack != "no run":
        (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError):
        _ = vaerun.load_run(tmp_path).model
    assert not proof.exists()


# --- help, without waiting for torch ---


def light(words: list[str], cwd: Path, env: dict[str, str]) -> str:
    """Output of the command, which has imported neither torch nor any other slow module."""
    code = "import sys; sys.argv[0] = 'vaerun'; from vaerun.cli.main import main; main()\n"
    code += "assert not {'torch', 'torchvision', 'tensorboard', 'sklearn'} & set(sys.modules)"
    call = [sys.executable, "-c", code, *words]
    done = subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(cwd.iterdir()) == []
    return done.stdout


def test_help_lists_all_choices(tmp_path: Path, env: dict[str, str]) -> None:
    lines = light(["--help"], tmp_path, env).splitlines()
    for group in GROUPS:
        at = lines.index(f"{group}=") + 1
        for path in sorted((builtin_config_dir() / group).glob("*.yaml")):
            name, text = lines[at].split(maxsplit=1)
            assert lines[at].startswith("  ")
            assert name == path.stem
            assert len(text) > 10
            at += 1
        assert at == len(lines) or not lines[at].strip() or lines[at].endswith("=")
    assert "Exit codes: 0 done, 1 a run failed, 2 bad input, 130" in "\n".join(lines)
    assert shell(["-h"], tmp_path, env).stdout.splitlines() == lines


def test_cfg_job(tmp_path: Path, env: dict[str, str]) -> None:
    shown = yaml.safe_load(light(["--cfg", "job", "model=sa_vae", "seed=7"], tmp_path, env))
    assert (shown["model"]["name"], shown["seed"], shown["data"]["name"]) == ("sa_vae", 7, "digits")


def test_version_and_completion(tmp_path: Path, env: dict[str, str]) -> None:
    assert shell(["--version"], tmp_path, env).stdout == f"vaerun {command_version()}\n"
    asked = env | {"COMP_LINE": "vaerun model=v", "COMP_POINT": "14", "_COMPLETE": "1"}
    offered = shell(["-sc", "query=bash"], tmp_path, asked).stdout.split()
    assert {"model=vae", "model=vae_hf", "model=vlae"} <= set(offered)
    assert "model=sa_vae" not in offered


def command_version() -> str:
    from importlib.metadata import version

    return version("vaerun")


@pytest.mark.parametrize("words", ["vaerun --help", "vaerun-eval --help", "vaerun-table FOLDER"])
def test_a_reader_that_leaves_early(words: str, finished: SimpleNamespace, env: dict[str, str]) -> None:
    """`vaerun --help | head -1` ends quietly."""
    name, argument = words.replace("FOLDER", str(finished.folder)).split()
    reading, writing = os.pipe()
    os.close(reading)  # before anything was written
    try:
        command = [str(Path(sys.executable).with_name(name)), argument]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=env, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
