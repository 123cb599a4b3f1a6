"""The console command as a user meets it, and the run directory that it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vaerun
from vaerun.cli import main as command
from vaerun.errors import InputError
from vaerun.settings import fingerprint

COMMAND = str(Path(sys.executable).with_name("vaerun"))
TINY = """model.encoder.hidden=[8] model.decoder.hidden=[8] model.latent_dim=2 trainer.device=cpu evaluation.samples=20
evaluation.images=20""".split()  # noqa: SIM905
SHORT = [*TINY, "trainer.max_steps=25", "trainer.log_every=5"]
LONG = ["model=vae", *TINY, "trainer.max_steps=400", "trainer.log_every=10", "trainer.checkpoint_seconds=0.05"]
LONG += ["trainer.epochs=100", "evaluation.every=5", "evaluation.pictures=0"]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    own = {"VAERUN_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}
    return {k: v for k, v in os.environ.items() if not k.startswith("VAERUN")} | own


@pytest.fixture(autouse=True)
def single_precision(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.delenv("VAERUN_DATA", raising=False)
    monkeypatch.setenv("VAERUN_CACHE", env["VAERUN_CACHE"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: put back after the test
    yield
    torch.set_num_threads(threads)


def shell(words: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The same command in this process, which spares importing torch again."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(command, "_failure", None)
        monkeypatch.setattr("sys.argv", ["vaerun", *words])
        code = 0
        try:
            command.main()
        except SystemExit as left:
            code = int(left.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> SimpleNamespace:
    """The default run, shortened, in its default folder."""
    cwd = tmp_path_factory.mktemp("work")
    done = shell(SHORT, cwd, env)
    assert done.returncode == 0, done.stderr
    (result,) = cwd.glob("outputs/digits/vlae/elbo-seed0-*/result.json")
    return SimpleNamespace(cwd=cwd, folder=result.parent, result=json.loads(result.read_text()), done=done)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensorboard(folder: Path) -> Any:
    """The events as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


# --- what a run leaves ---


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
    assert all(line.startswith("epoch ") for line in err.splitlines())
    assert len(err.splitlines()) <= 3
    value, error = (
        finished.result["metrics"]["test/log_likelihood"],
        finished.result["metrics"]["test/log_likelihood_se"],
    )
    (row,) = [line for line in out.splitlines() if line.startswith("test/log_likelihood")]
    assert f"{value:.2f} ± {error:.2f}" in row
    assert "K=20" in row
    assert str(finished.folder) in out.splitlines()[-1]


def assert_same_scalars(events: Any, lines: list[dict[str, Any]]) -> None:
    for tag in ("train/elbo", "train/kl", "train/reconstruction", "val/elbo", "test/elbo", "test/log_likelihood"):
        expected = [(line["step"], line[tag]) for line in lines if tag in line]
        found = [(e.step, e.value) for e in events.Scalars(tag)]
        assert [s for s, _ in found] == [s for s, _ in expected] != []
        np.testing.assert_allclose([v for _, v in found], [v for _, v in expected], rtol=1e-6)


def test_metrics_and_tensorboard_agree(finished: SimpleNamespace) -> None:
    lines = records(finished.folder)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    assert [x["step"] for x in lines if "train/elbo" in x] == [5, 10, 15, 20, 25]
    assert [x["step"] for x in lines if "val/elbo" in x] == [11, 22, 25]
    events = tensorboard(finished.folder)
    assert_same_scalars(events, lines)
    images = {"images/data", "images/reconstructions", "images/samples", "images/manifold"}
    assert set(events.Tags()["images"]) == images
    hparams = events.summary_metadata
    assert {t for t in hparams if hparams[t].plugin_data.plugin_name == "hparams"} >= {
        "_hparams_/experiment",
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
    sizes = {"data": (91, 46), "reconstructions": (91, 46), "samples": (91, 91), "manifold": (181, 181)}
    assert {p.stem for p in (folder / "figures").iterdir()} == sizes.keys()
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
    assert again.stdout == f"finished before: {finished.folder}\n{finished.done.stdout}"
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
    found = vaerun.log_likelihood(run.model, run.data.test.batch(0, 20).x, samples=20)
    with np.load(finished.folder / "per_example.npz") as arrays:
        np.testing.assert_allclose(found.numpy(), arrays["log_likelihood"], rtol=1e-6)
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


# --- stopping and going on ---


def start(folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    words = [COMMAND, *LONG, f"output_dir={folder}"]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not (folder / "checkpoints" / "previous.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(folder, env)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGUSR1", 75), ("SIGKILL", -signal.SIGKILL)]
)
def test_stopped_by_signal_goes_on(
    name: str, code: int, tmp_path: Path, env: dict[str, str], here: Any, uninterrupted: Path
) -> None:
    folder = tmp_path / "run"
    process = start(folder, env)
    wait_for_checkpoint(folder, process)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    killed = name == "SIGKILL"
    assert [line for line in err.splitlines() if not line.startswith("epoch ")] == (
        [] if killed else [f"vaerun: stopped by {name}"]
    )
    record = json.loads((folder / "result.json").read_text())
    assert record["status"] == ("running" if killed else "interrupted")
    assert 0 < torch.load(folder / "checkpoints" / "last.pt")["progress"]["step"] < 400
    time.sleep(1.1)  # TensorBoard orders its files by the second; starting the command anew takes longer than that
    code, _, err = here(*LONG, f"output_dir={folder}")
    assert code == 0, err
    first, second = (json.loads((f / "result.json").read_text()) for f in (folder, uninterrupted))
    assert first["metrics"] == second["metrics"]
    assert (folder / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()
    assert_same_scalars(tensorboard(folder), records(folder))  # each step stands once


@pytest.mark.slow
def test_two_runs_at_once(tmp_path: Path, env: dict[str, str], here: Any) -> None:
    folder = tmp_path / "run"
    process = start(folder, env)
    try:
        wait_for_checkpoint(folder, process)
        process.send_signal(signal.SIGSTOP)  # so that it is surely still there
        before = state(folder)
        code, out, err = here(*LONG, f"output_dir={folder}")
        assert (code, out) == (2, "")
        assert f"another run is working in {folder}" in err
        assert len(err.splitlines()) == 1
        assert state(folder) == before
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_sweep(tmp_path: Path, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", *TINY, "trainer.max_steps=2", "evaluation.pictures=0"]
    assert here(*words, "seed=0,1", "output_dir=both")[0] == 0
    seeds = [json.loads(p.read_text())["seed"] for p in sorted(tmp_path.glob("both/**/result.json"))]
    assert sorted(seeds) == [0, 1]
    # One bad job does not stop the other; it is told once, with its own words.
    code, _, err = here(*words, "model.inference.steps=-1,1", "output_dir=half")
    assert code == 1
    (line,) = [x for x in err.splitlines() if x.startswith("vaerun: error")]
    assert "model.inference.steps=-1" in line
    assert len(list(tmp_path.glob("half/**/result.json"))) == 1


# --- help, without waiting for torch ---


def light(words: list[str], cwd: Path, env: dict[str, str]) -> str:
    """What the command prints; it has imported neither torch nor anything else that is slow."""
    code = "import sys; sys.argv[0] = 'vaerun'; from vaerun.cli.main import main; main()\n"
    code += "assert not {'torch', 'torchvision', 'tensorboard', 'sklearn'} & set(sys.modules)"
    call = [sys.executable, "-c", code, *words]
    done = subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(cwd.iterdir()) == []
    return done.stdout


def test_help_lists_all_choices(tmp_path: Path, env: dict[str, str]) -> None:
    lines = light(["--help"], tmp_path, env).splitlines()
    for group in command.GROUPS:
        at = lines.index(f"{group}=") + 1
        for path in sorted((command.config_folder() / group).glob("*.yaml")):
            name, text = lines[at].split(maxsplit=1)
            assert lines[at].startswith("  ")
            assert name == path.stem
            assert len(text) > 10
            at += 1
        assert at == len(lines) or not lines[at].strip() or lines[at].endswith("=")
    assert "Exit codes: 0 done, 1 failed, 2 bad input, 130" in "\n".join(lines)
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
