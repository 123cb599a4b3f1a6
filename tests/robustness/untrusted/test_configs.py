"""Untrusted configurations and results: bounded in size, without interpolation, and no control code is printed."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.robustness.untrusted import (
    assert_harmless,
    assert_rejected,
    edit_config,
    edit_result,
    open_all,
    peak_bytes,
)

from vaerun.config.identity import fingerprint
from vaerun.run import load
from vaerun.storage import untrusted, yaml_files

GIB = 1 << 30


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "key",
    ["data.path", *(pytest.param(k, marks=SLOW) for k in ("model.name", "output_dir", "evaluation.sets.x", "seed"))],
)
@pytest.mark.parametrize(
    "text",
    ["${hydra:job.name}", "${oc.env:SECRET}", "a${oc.env:SECRET,none}b", "${oc.decode:${oc.env:SECRET}}",
     "${oc.create:1}",
     "${vaerun.run_dir:}", "\\${oc.env:SECRET}", "${", "$" + "{data.name}", "???"],
)  # fmt: skip
def test_nothing_is_interpolated(
    stranger: Path, capsys: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, key: str, text: str
) -> None:
    monkeypatch.setenv("SECRET", "hushhush")

    def change(plain: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            plain = plain[parent]
        plain[last] = text

    edit_config(stranger, change)
    opened = open_all(stranger, capsys)
    assert opened.codes["load_run"] == opened.codes["eval"] == 2
    assert_harmless(opened, stranger, cache)
    assert "hushhush" not in opened.text


@pytest.mark.parametrize(
    "plain",
    [{"${oc.env:SECRET}": 1}, {"a": {"x${seed}": {}}}, {"a": [{"b": [{"${seed}": 1}]}]}, {"a": "???"}, {"???": 1}],
    ids=str,
)
def test_keys_are_looked_at_as_values_are(
    stranger: Path, capsys: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[str, Any]
) -> None:
    monkeypatch.setenv("SECRET", "hushhush")
    edit_config(stranger, lambda config: config["evaluation"].update(sets=plain))
    assert "hushhush" not in assert_rejected(stranger, capsys, cache, "was not written by vaerun")


BOMB = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{p: *{a}, q: *{a}}}\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}, *a{i}]}}\n" for i in range(40))
DOCUMENTS = {
    "object": "x: !!python/object/apply:os.system ['touch pwned']",
    "name": "x: !!python/name:os.system",
    "module": "!!python/module:pwned {}",
    "aliases": BOMB,
    "merges": MERGED,
    "deep": "[" * 100_000,
    "deep pairs": "{a: " * 5000 + "1" + "}" * 5000,
    "wide": "a:\n" + "- 1\n" * 60_000,
    "large": "a: " + "x" * (2 << 20),
    "number": "a: " + "9" * 5000,
    "number in base 60": "a: " + "1:" * 450_000 + "1",
    "number in base 16": "a: 0x" + "f" * 5000,
    "number by its tag": "a: !!int '0b" + "1" * 5000 + "'",
    "fraction in base 60": "a: " + "1:" * 450_000 + "1.5",
    "fraction": "a: " + "9" * 900_000 + ".5",
    "date": "a: 2020-99-99",
    "infinite": "a: .inf",
    "binary": "a: !!binary '*'",
    "bytes": "a: \udcff",
    "nul": "a: \0",
    "unhashable": "? [a]\n: 1",
    "documents": "a: 1\n--- \nb: 2",
    "list": "- 1",
    "empty": "",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_configurations_that_are_none(stranger: Path, capsys: Any, cache: Path, name: str) -> None:
    content = DOCUMENTS[name].encode("utf-8", "surrogateescape")
    (stranger / ".hydra" / "config.yaml").write_bytes(content)
    before = peak_bytes()
    assert_rejected(stranger, capsys, cache, "config.yaml")
    assert peak_bytes() - before < GIB // 4


def test_too_many_values_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("made")

    monkeypatch.setattr(yaml_files.yaml, "load", load)
    (tmp_path / "a.yaml").write_text("a:\n" + "- 1\n" * 60_000)
    with pytest.raises(ValueError, match="too many values"):
        yaml_files.read_config(tmp_path / "a.yaml")


def test_a_file_that_holds_more_than_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may grow while it is read, and system files claim to have no bytes."""
    path = Path("/proc/self/status")
    if not path.exists():  # a system without it
        path = tmp_path / "grown"
        path.write_bytes(b"x" * 200)
        monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((stat.S_IFREG, *[0] * 9)))
    content = untrusted.read_bytes(path, 1 << 20)
    assert len(content) > 100
    with pytest.raises(ValueError, match=r"it has 101 bytes, more than the limit of 100"):
        untrusted.read_bytes(path, 100)


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "0b" + "1" * 20_000, "0" + "7" * 5000, "9" * 5000])
@pytest.mark.parametrize("key", ["model.latent_dim", "seed", "evaluation.interpolation"])
def test_a_number_that_python_does_not_print(
    stranger: Path, capsys: Any, cache: Path, tmp_path: Path, key: str, number: str
) -> None:
    """The other runs keep their rows in a table."""
    shutil.copytree(stranger, tmp_path / "both" / "other")
    stranger = stranger.rename(tmp_path / "both" / "stranger")
    *parents, last = key.split(".")
    edit_config(stranger, lambda plain: (plain[parents[0]] if parents else plain).update({last: "NUMBER"}))
    path = stranger / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("NUMBER", f"[[{number}]]" if key.startswith("evaluation") else number))
    assert_rejected(stranger, capsys, cache, "config.yaml", "characters is longer than the limit of 100")
    opened = open_all(tmp_path / "both", capsys, ("table",))
    assert opened.codes["table --list"] == 0
    assert "unreadable" in opened.text
    assert "other" in opened.text


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[" * 200_000, "deeply"), (b'{"a": ' * 60 + b"1" + b"}" * 60, "deeply"), (b" " * (17 << 20), "the limit"),
     (b'{"metrics": ' + b"9" * 5000 + b"}", "integer of 5000 characters"), (b"\xff", "decode"),
     (b"", ""), (b"[]", "not a result")],
)  # fmt: skip
def test_records_that_are_none(stranger: Path, capsys: Any, cache: Path, content: bytes, message: str) -> None:
    (stranger / "result.json").write_bytes(content)
    assert_rejected(stranger, capsys, cache, "result.json", message)


@pytest.mark.parametrize(
    "change",
    [lambda p: p["model"]["encoder"].update(hidden=[10**9]),
     lambda p: p["model"]["decoder"].update(hidden=[30_000] * 9), lambda p: p["model"].update(latent_dim=10**9),
     lambda p: p["model"]["decoder"].update(hidden=[3000] * 100)],
)  # fmt: skip
def test_a_model_larger_than_its_checkpoint(stranger: Path, capsys: Any, cache: Path, change: Any) -> None:
    edit_config(stranger, change)
    before = peak_bytes()
    assert_rejected(stranger, capsys, cache, "far larger than the parameters")
    assert peak_bytes() - before < GIB // 2


@pytest.mark.parametrize(
    "change",
    [lambda r: r["timing"].update(train_steps=2**63), lambda r: r["timing"].update(train_steps=2**63 - 1),
     lambda r: r["timing"].update(train_steps=10**400), lambda r: r["timing"].update(train_steps=1e30),
     lambda r: r["timing"].update(train_steps="9" * 4000), lambda r: r["timing"].update(train_steps=-1),
     lambda r: r["protocol"].update(selected_epoch=-1e400), lambda r: r["protocol"].update(selected_epoch=1e300),
     lambda r: r["environment"].update(x=-(2**63) - 1), lambda r: r["metrics"].update({"a": [{"b": 10**20}]}),
     lambda r: r["metrics"].update({"\udfff": 1}), lambda r: r.update(x=[{"y": "a\ud800"}])],
)  # fmt: skip
def test_a_record_that_cannot_be_written_again(stranger: Path, capsys: Any, cache: Path, change: Any) -> None:
    """It is rejected before any work: nothing is added to metrics.jsonl and no event file is created."""
    edit_result(stranger, change)
    before = {p: p.read_bytes() for p in stranger.rglob("*") if p.is_file() and p.name != ".lock"}
    opened = open_all(stranger, capsys, ("eval",))
    assert opened.codes["eval"] == 2
    assert opened.text.count("\n") == 1
    assert "result.json" in opened.text
    assert {p: p.read_bytes() for p in stranger.rglob("*") if p.is_file() and p.name != ".lock"} == before
    opened = open_all(stranger, capsys, ("table",))
    assert set(opened.codes.values()) <= {0, 2}
    assert_harmless(opened, stranger, cache)


def test_whole_letters_may_be_escaped(stranger: Path, capsys: Any) -> None:
    edit_result(stranger, lambda record: record.update(x="\U0001f600", y="\\ud800"))
    assert "\\ud83d" in (stranger / "result.json").read_text()
    assert open_all(stranger, capsys, ("eval",)).codes["eval"] == 0
    assert json.loads((stranger / "result.json").read_text())["x"] == "\U0001f600"


def test_names_that_are_no_unicode(stranger: Path, capsys: Any, here: Any, tmp_path: Path) -> None:
    """A directory's name is bytes; what is recorded of it is text."""
    odd = stranger.rename(stranger.with_name("odd\udcff"))
    (odd / f"events.out.tfevents.{'9' * 200}.x").touch()  # whose successor would have a name too long for a file
    opened = open_all(odd, capsys)
    assert set(opened.codes.values()) == {0}, opened.text
    clear(opened.text)
    code, out, err = here("--check", f'output_dir="{tmp_path}/out\udcff"')
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "output_dir is not utf-8 text" in err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("times", "message"), [(3, "size mismatch"), (5, "far larger than the parameters")])
def test_a_model_of_four_times_its_checkpoint(
    stranger: Path, capsys: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, times: int, message: str
) -> None:
    """Beyond that it is rejected; 256 MiB are allowed on top."""
    assert load._MEMORY_MARGIN == 256 << 20
    monkeypatch.setattr(load, "_MEMORY_MARGIN", 0)

    def change(plain: dict[str, Any]) -> None:
        for part in ("encoder", "decoder"):
            plain["model"][part]["hidden"] = [8 * times]

    edit_config(stranger, change)
    assert_rejected(stranger, capsys, cache, message)


CODES = "\x1b[31m\x1b]0;title\x07\x9b2J\r\x08\u202e\u200b"
HALVES = "\udcff\ud800"  # of letters: a record that has some is refused


def polluted(value: Any, codes: str) -> Any:
    """The same value with control codes in every string and key."""
    if isinstance(value, dict):
        return {(k if k in _KEPT else k + codes): polluted(v, codes) for k, v in value.items()} | {
            k: polluted(v, codes) for k, v in value.items()
        }
    if isinstance(value, list):
        return [polluted(v, codes) for v in value]
    return value + codes if isinstance(value, str) and value not in _KEPT else value


_KEPT = {"ok", "nats per image"}


def clear(text: str) -> None:
    bad = {c for c in text if not c.isprintable() and c != "\n"}
    assert not bad, bad


@pytest.mark.parametrize("which", ["result.json", "config.yaml", "both", "names", "failed", "sweep.json"])
@pytest.mark.parametrize("codes", [CODES, CODES + HALVES], ids=["codes", "halves"])
def test_nothing_is_said_to_the_terminal(stranger: Path, capsys: Any, which: str, codes: str) -> None:
    if which in ("result.json", "both"):
        edit_result(stranger, lambda record: record.update(polluted(record, codes)))
    if which == "failed":
        edit_result(stranger, lambda record: record.update(status="failed", error=codes))
    if which in ("config.yaml", "both"):
        path = stranger / ".hydra" / "config.yaml"
        plain = polluted(yaml.safe_load(path.read_text()), codes)
        path.write_text(yaml.safe_dump(json.loads(json.dumps(plain).replace("\\udcff", "").replace("\\ud800", ""))))
    if which == "names":
        odd = stranger.parent / f"odd{codes.replace(chr(0xD800), '')}" / "run"
        odd.parent.mkdir()
        stranger.rename(odd)
        (odd / "result.json").write_text("{")
        stranger = odd.parent
    if which == "sweep.json":
        jobs = [{"folder": codes, "words": [codes], "config": {"model": {"name": codes}}, "total_steps": codes}]
        (stranger / "sweep.json").write_text(json.dumps({"jobs": jobs, "command": [codes]}))
    opened = open_all(stranger, capsys)
    clear(opened.text)
    assert "Traceback" not in opened.text


def test_a_finished_run_is_told_of_without_control_codes(stranger: Path) -> None:
    """What `vaerun` prints for a directory that already holds this run."""
    from vaerun.run.result import format_table

    record = json.loads((stranger / "result.json").read_text())
    for key in ("likelihood", "binarize", "evaluated_split"):
        clear(
            format_table(
                record | {"protocol": record["protocol"] | {key: CODES + HALVES}, "model": CODES}, stranger
            ).replace("�", "")
        )


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["data_sha256", "units", "images", "selected_epoch", "evaluated_images"])
@pytest.mark.parametrize("value", [None, [], {}, "x", 1e400, 10**400, True])
def test_a_protocol_that_is_none(stranger: Path, capsys: Any, cache: Path, damage: str, value: Any) -> None:
    edit_result(stranger, lambda record: record["protocol"].update({damage: value}))
    opened = open_all(stranger, capsys)
    assert set(opened.codes.values()) <= {0, 2}
    assert_harmless(opened, stranger, cache)
    edit_result(stranger, lambda record: record["protocol"].pop(damage))
    record = json.loads((stranger / "result.json").read_text())
    plain = yaml.safe_load((stranger / ".hydra" / "config.yaml").read_text())
    record["fingerprint"] = fingerprint(plain, str(record["protocol"].get("data_sha256")))
    (stranger / "result.json").write_text(json.dumps(record))
    opened = open_all(stranger, capsys)
    assert set(opened.codes.values()) <= {0, 2}
    assert_harmless(opened, stranger, cache)
