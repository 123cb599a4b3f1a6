"""Links, pipes and paths of an untrusted run directory: nothing outside it is read or written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.robustness.untrusted import assert_harmless, assert_rejected, edit_config, edit_result, open_all

NAMES = ["metrics.jsonl", "result.json", ".hydra", ".hydra/config.yaml", "checkpoints", "checkpoints/best.pt",
         "figures",
         "per_example.npz", ".lock", ".result.json.PID.tmp", "figures/new", "table", "arrays-new.npz",
         "events.out.tfevents.1.x", "deep/er"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relative", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_links_that_lead_out(
    stranger: Path, capsys: Any, cache: Path, tmp_path: Path, name: str, relative: bool
) -> None:
    name = name.replace("PID", str(os.getpid()))  # the temporary file that this process would write
    outside, place = tmp_path / "outside", stranger / name
    if place.exists():
        place.rename(outside)
    else:
        place.parent.mkdir(exist_ok=True)
        outside.write_text("mine")
    place.symlink_to(os.path.relpath(outside, place.parent) if relative else outside)
    before = {p: (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns) for p in (outside, *outside.rglob("*"))}
    assert_rejected(stranger, capsys, cache, "is a link that leads out of")
    assert {p: (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns) for p in before} == before
    assert set(outside.rglob("*")) | {outside} == set(before)


def test_a_link_within_the_directory_and_one_to_it(stranger: Path, capsys: Any, tmp_path: Path) -> None:
    (stranger / "kept.pt").write_bytes((stranger / "checkpoints" / "best.pt").read_bytes())
    (stranger / "checkpoints" / "best.pt").unlink()
    (stranger / "checkpoints" / "best.pt").symlink_to("../kept.pt")
    (tmp_path / "name").symlink_to(stranger)
    assert open_all(tmp_path / "name", capsys, ("load_run", "eval")).codes == {"load_run": 0, "eval": 0}


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock"])
def test_files_that_are_somebodys_too(stranger: Path, capsys: Any, cache: Path, tmp_path: Path, name: str) -> None:
    """A hard link: appending or truncating would change a file elsewhere."""
    (stranger / name).unlink()
    (tmp_path / "mine").write_text("mine")
    os.link(tmp_path / "mine", stranger / name)
    edit_result(stranger, lambda record: record.update(status="running"))
    for ways in (("table",), ("eval",)):
        assert_harmless(open_all(stranger, capsys, ways), stranger, cache)
    edit_result(stranger, lambda record: record.update(status="ok"))
    assert open_all(stranger, capsys, ("eval",)).codes == {"eval": 2}
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", ["result.json", ".hydra/config.yaml", "checkpoints/best.pt", "per_example.npz",
                                  "metrics.jsonl"])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "folder", "ring", "dangling"])
def test_what_is_no_file(stranger: Path, capsys: Any, cache: Path, name: str, kind: str) -> None:
    """load_run needs the first three, vaerun-eval all of them; no table waits for a writer."""
    place = stranger / name
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(place.name if kind == "ring" else "nowhere")
    opened = open_all(stranger, capsys)
    assert opened.codes["load_run"] == 0 if name in ("per_example.npz", "metrics.jsonl") else 2
    assert opened.codes["eval"] == (0 if (name, kind) == ("per_example.npz", "dangling") else 2)
    assert set(opened.codes.values()) <= {0, 2}
    assert_harmless(opened, stranger, cache)


def test_a_plan_leads_nowhere(stranger: Path, capsys: Any, cache: Path, tmp_path: Path) -> None:
    secret = tmp_path / "other"
    stranger.rename(secret)
    edit_result(secret, lambda record: record.update(model="hushhush", status="running"))
    edit_config(secret, lambda plain: plain["model"].update(name="hushhush"))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "inside").symlink_to(secret)
    names = ["../other", str(secret), "inside", "x/../../other", "/", "..", "\0", "a\x1b[31m"]
    (sweep / "sweep.json").write_text(
        json.dumps({"jobs": [{"folder": n, "config": {"model": {"name": "vae"}}} for n in names]})
    )
    (secret / ".lock").write_text("mine")
    opened = open_all(sweep, capsys, ("table",))
    assert_harmless(opened, sweep, cache)
    assert "hushhush" not in opened.text
    assert "is not below sweep: skipped" in opened.text
    assert (secret / ".lock").read_text() == "mine"


@pytest.mark.parametrize("name", ["result.json", ".hydra/config.yaml"])
def test_a_table_reads_through_no_link(stranger: Path, capsys: Any, tmp_path: Path, name: str) -> None:
    edit_result(stranger, lambda record: record.update(model="hushhush"))
    edit_config(stranger, lambda plain: plain["model"].update(name="hushhush"))
    (stranger / name).rename(tmp_path / "secret")
    (stranger / name).symlink_to(tmp_path / "secret")
    other = "result.json" if name == ".hydra/config.yaml" else ".hydra/config.yaml"
    (stranger / other).unlink()
    assert "hushhush" not in open_all(stranger, capsys, ("table",)).text


def test_tables_are_written_to_no_link(stranger: Path, tmp_path: Path, capsys: Any) -> None:
    from vaerun.cli import table

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "events.out.tfevents.1.mine").write_text("mine")
    (stranger / "table").symlink_to(outside)
    assert table.main([str(stranger), "--rows", "model", "--format", "tensorboard"]) == 2
    assert "is a link" in capsys.readouterr().err
    assert [p.name for p in outside.iterdir()] == ["events.out.tfevents.1.mine"]


@pytest.mark.parametrize("name", ["../../outside", "/etc", "a/b", "..", "", "\x1b[31m", "a" * 5000, "x\n"])
@pytest.mark.parametrize("group", ["data", *(pytest.param(g, marks=pytest.mark.slow) for g in ("model", "estimator"))])
def test_a_name_is_no_path(stranger: Path, capsys: Any, cache: Path, name: str, group: str) -> None:
    edit_config(stranger, lambda plain: plain[group].update(name=name))
    opened = open_all(stranger, capsys, ("load_run", "eval"))
    assert opened.codes["load_run"] == 2 or len(name) == 5000
    assert_harmless(opened, stranger, cache)


def test_another_data_set_is_not_evaluated(stranger: Path, capsys: Any, cache: Path, tmp_path: Path) -> None:
    """A path in the configuration is at most read as images, which are used only if they have the recorded sha256."""
    np.savez(tmp_path / "private.npz", train_images=np.zeros((2000, 1, 8, 8), dtype=np.uint8))
    for path in (str(tmp_path / "private.npz"), "/dev/zero", "/etc/passwd", "/nowhere"):
        edit_config(
            stranger,
            lambda plain, path=path: plain["data"].update(path=path, source={"_target_": "vaerun.data.sources.npz"}),
        )
        assert_rejected(stranger, capsys, cache)
