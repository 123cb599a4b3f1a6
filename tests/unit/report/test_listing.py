"""The listing of run directories is made from their files alone, whatever state they are in."""

import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from support.sweeps import records as sweeping_records

from vaerun.cli.table import main


def make_run(
    folder: Path, model: str, seed: int, status: str = "ok", value: float | None = 1.5, t: int | None = 4
) -> None:
    (folder / ".hydra").mkdir(parents=True)
    metrics = (
        {} if value is None else {"test/log_likelihood": value, "test/log_likelihood_se": 0.25, "test/elbo": value - 1}
    )
    record = {
        "fingerprint": "0", "status": status, "data": "digits", "model": model, "estimator": "elbo", "seed": seed,
        "metrics": metrics,
        "protocol": {
            "selected_epoch": 3.0, "importance_samples": 5000, "evaluated_images": 7, "likelihood": "gaussian",
            "binarize": "none", "dequantize": model == "vlae", "logit": False, "conditional": seed == 1,
        },
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(record))
    inference = {"_target_": "x"} | ({} if t is None else {"steps": t})
    (folder / ".hydra" / "config.yaml").write_text(
        yaml.safe_dump({"model": {"inference": inference, "latent_dim": 16}})
    )


def test_rows_of_runs_in_all_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "c", "vlae", 0, value=-12.345)
    make_run(tmp_path / "b", "vae", 1, t=None)
    make_run(tmp_path / "a", "vae", 0, status="failed", value=None, t=None)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "result.json").write_text("{")
    assert main([str(tmp_path), "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    actual = {row["folder"]: row for row in table}
    assert [row["folder"] for row in table if row["model"]] == ["a", "b", "c"]
    assert [row["pixels"] for row in table if row["model"]] == ["as stored", "as stored", "dequantised"]
    assert [row["given"] for row in table if row["model"]] == ["", "label", ""]
    assert (actual["c"]["images"], actual["c"]["d"], actual["c"]["likelihood"]) == ("7", "16", "gaussian")
    assert (actual["c"]["T"], actual["c"]["test/log_likelihood"], actual["c"]["± se"], actual["c"]["K"]) == (
        "4", "-12.345", "0.25", "5000",
    )  # fmt: skip
    assert (actual["a"]["status"], actual["a"]["test/log_likelihood"], actual["a"]["K"]) == ("failed", "", "")
    assert "unreadable" in actual["d"]["status"]


def test_networks_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def made(encoder: str, decoder: str) -> dict[str, str]:
        return {"model.encoder._target_": f"vaerun.nets.{encoder}", "model.decoder._target_": f"vaerun.nets.{decoder}"}

    conv, mlp = made("ConvEncoder", "ConvDecoder"), made("MLPEncoder", "MLPDecoder")
    for seed in (0, 1):
        sweeping_records.run(tmp_path / "mlp", "vae", None, seed, 1.0, **mlp)
    assert main([str(tmp_path)]) == 0
    assert "network" not in capsys.readouterr().out
    sweeping_records.run(tmp_path / "conv", "vae", None, 0, 1.0, **conv)
    sweeping_records.run(tmp_path / "both", "vae", None, 0, 1.0, **conv | made("ConvEncoder", "MLPDecoder"))
    sweeping_records.run(
        tmp_path / "gan", "gan", None, 0, None,
        **{"model.encoder": None, "model.decoder": None, "model.generator._target_": "vaerun.nets.ConvGenerator"},
    )  # fmt: skip
    assert main([str(tmp_path)]) == 0
    assert "| network  |" in capsys.readouterr().out
    assert main([str(tmp_path), "--format", "csv"]) == 0
    actual = {r["folder"].partition("/")[0]: r["network"] for r in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert actual == {"mlp": "mlp", "conv": "conv", "both": "conv/mlp", "gan": "conv"}


def test_markdown_is_one_line_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", "a|b\n\x1b[31m", 0)
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "\x1b" not in lines[2]
    assert "a\\|b" in lines[2]


def test_a_folder_without_runs_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_sweep_is_compared_and_other_folders_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweeping_records.run(tmp_path, "vlae", 4, 0, 20.0)

    def head(*words: str) -> str:
        assert main([str(tmp_path), *words]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))

    assert head().startswith("| data")
    for words in (["--rows", "model"], ["--columns", "none"], ["--metric", "test/elbo"], ["--published", "none"]):
        assert head(*words).startswith("| model")
    for words in (["--where", "seed=0"], ["--mix", "all"], ["--paired"]):
        assert head(*words).startswith("| model / T")
    sweeping_records.write_plan(tmp_path, [])
    assert head().startswith("| model / T")
    assert head("--list").startswith("| data")


def test_the_listing_is_of_the_runs_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweeping_records.run(tmp_path, "vlae", 4, 0, 20.0)
    sweeping_records.run(tmp_path, "vlae", 4, 1, 20.0, **{"data.name": "mnist"})
    sweeping_records.run(tmp_path, "vae", None, 0, None, "failed", **{"data.name": "mnist"})
    for words, folders in (
        (["data=mnist"], ["vae_tNone_0", "vlae_t4_1"]),
        (["data=mnist", "model=vlae"], ["vlae_t4_1"]),
        (["seed=0", "seed=1", "model.inference.steps=4"], ["vlae_t4_0", "vlae_t4_1"]),
    ):
        conditions = [part for word in words for part in ("--where", word)]
        assert main([str(tmp_path), "--list", "--format", "csv", *conditions]) == 0
        assert sorted(row["folder"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))) == folders
    assert main([str(tmp_path), "--list", "--where", "data=svhn"]) == 2
    assert "no run has this value; available: mnist, cifar10" in capsys.readouterr().err


def test_output_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweeping_records.run(tmp_path / "runs", "vlae", 4, 0, 20.0)
    for form, begins in (("md", b"test/"), ("csv", b"row,"), ("tex", b"\\begin"), ("png", b"\x89PNG")):
        target = tmp_path / f"out.{form}"
        assert main([str(tmp_path / "runs"), "--rows", "model", "--format", form, "--output", str(target)]) == 0
        assert target.read_bytes().startswith(begins)
        assert capsys.readouterr().out == f"written: {target}\n"
    assert main([str(tmp_path / "runs"), "--list", "--output", str(tmp_path / "out.md")]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'out.md'}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.md", "out.png", "out.tex", "runs"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--list", "--paired"], "--list cannot be combined with --paired"),
        (["--list", "--format", "tex"], "--list cannot be combined with --format tex"),
        (["--format", "png"], "--format png needs --output FILE"),
        (["--format", "tensorboard", "--output", "x"], "leave out --output"),
        (["--format", "csv", "--paired"], "--paired needs --format md"),
        (["--rows", "model", "--output", "nowhere/x.md"], "no such folder: nowhere"),
        (["--rows", "model", "--output", "."], "is a folder"),
        (["--rows", "modle"], "Did you mean"),
        (["--format", "pdf"], "invalid choice"),
    ],
)
def test_unusable_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    sweeping_records.run(tmp_path, "vlae", 4, 0, 20.0)
    try:
        code = main([str(tmp_path), *words])
    except SystemExit as left:
        code = int(left.code or 0)
    actual = capsys.readouterr()
    assert code == 2
    assert message in actual.err
    assert len(actual.err.splitlines()) == 1
    assert actual.out == ""


def test_listed_text_is_no_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "=cmd", "+model\x1b", 0, value=-2.5)
    assert main([str(tmp_path), "--format", "csv"]) == 0
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (row["folder"], row["model"], row["test/log_likelihood"]) == ("'=cmd", "'+model?", "-2.5")
