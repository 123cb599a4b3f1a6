"""Properties of any text, number and structure from outside, tested with hypothesis."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vaerun.config.overrides import parse_overrides
from vaerun.config.plugins import resolve
from vaerun.config.settings import to_settings
from vaerun.errors import InputError
from vaerun.report.text import clean, escape_csv, escape_markdown, escape_tex
from vaerun.run.load import _has_interpolation
from vaerun.storage.json_files import read_json
from vaerun.storage.plain_values import check_size
from vaerun.storage.yaml_files import read_config
from vaerun.text import printable, printable_lines

LIMITS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT = st.text(st.characters(), max_size=40) | st.text(
    "ab|[]()<>\\`*_$#&=+-@!~^{}%\"'\x1b\n\t\u202e\ud800 0", max_size=20
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def assert_readable(error: InputError) -> None:
    assert str(error).isprintable()


@LIMITS
@given(TEXT)
def test_text_for_a_terminal_is_one_printable_line(text: str) -> None:
    for made in (printable(text), printable(text, 7), clean(text), str(InputError(text))):
        assert made.isprintable()
        made.encode()
    assert len(printable(text, 7)) <= 7
    assert all(c.isprintable() or c == "\n" for c in printable_lines(text))
    assert printable(printable(text)) == printable(text)


@LIMITS
@given(TEXT)
def test_text_is_markup_in_no_format(text: str) -> None:
    text = clean(text)
    shown = escape_markdown(text, line=True)
    bare = re.sub(r"\\[\\|\[*$_#>~=+.)-]", "", shown)
    assert not re.search(r"[|<`*$\[\\]|(?<![^\W_])_|_(?![^\W_])", bare)
    assert not re.match(r"(#|>|~~~|[-+=](\s|$|[-+=])|\d+[.)](\s|$))", shown)
    tex = escape_tex(text)
    assert tex.isascii()
    known = r"\\text(backslash|asciitilde|asciicircum)\{\}|\\dots\{\}|\$\\pm\$|\$[<>|]\$|\{[\[\]*]\}|\\[&%$#_{}]"
    assert not re.search(r"[\\{}$&#^_~%]", re.sub(known, "", tex))
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([escape_csv(text), "1"])
    ((cell, one),) = csv.reader(io.StringIO(buffer.getvalue()))
    assert one == "1"
    begins = unicodedata.normalize("NFKC", cell[:1])
    assert begins not in tuple("=+-@\t\r") or re.fullmatch(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", cell)


@LIMITS
@given(PLAIN)
def test_files_are_read_or_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "file"
    try:
        path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    except (UnicodeEncodeError, yaml.YAMLError):
        return
    try:
        config = read_config(path)
    except ValueError:
        return
    assert yaml.safe_dump(config) == yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(value))
    try:
        record = read_json(path)
    except ValueError as error:
        assert "64 bits" in str(error)  # noqa: PT017
        return
    assert json.dumps(record) == json.dumps(value)


@LIMITS
@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    for read in (read_config, read_json):
        try:
            check_size(read(tmp_path / "file"), 10**6)
        except ValueError as error:
            assert_readable(InputError(error))


@LIMITS
@given(st.lists(TEXT, max_size=3))
def test_words_of_an_evaluation_are_read_or_refused(words: list[str]) -> None:
    for made in (
        words,
        [f"evaluation.samples={w}" for w in words],
        [f"data.{w}=1" for w in words],
        [f"data={w}" for w in words],
    ):
        try:
            assert isinstance(parse_overrides(made), dict)
        except InputError as error:
            assert_readable(error)


@LIMITS
@given(TEXT)
def test_targets_are_vaeruns_or_refused(text: str) -> None:
    before = set(sys.modules)
    for name in (text, f"vaerun.{text}", f"vaerun.nets.{text}", f"{text}.system", f"os.{text}"):
        try:
            part = resolve(name, "vaerun.nets")
        except InputError:
            continue
        assert part.__module__.startswith("vaerun.nets")
    assert all(name.startswith("vaerun") for name in set(sys.modules) - before)


BASE = {
    "data": {"name": "digits", "source": {"_target_": "vaerun.data.sources.digits"}},
    "model": {"name": "vae", "latent_dim": 2, "likelihood": "gaussian"},
    "estimator": {"name": "elbo", "function": {"_target_": "vaerun.estimators.elbo"}},
    "trainer": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
}


@settings(LIMITS, max_examples=20)
@given(st.sampled_from(["data", "model", "estimator", "trainer", "evaluation", "sweep"]), TEXT, PLAIN)
def test_settings_are_checked_or_refused(group: str, key: str, value: Any) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = {
        "data": "validation",
        "model": "latent_dim",
        "estimator": "samples",
        "trainer": "betas",
        "evaluation": "sets",
    }
    for name in (key, known.get(group, key)):
        plain = {**BASE, group: {**BASE.get(group, {}), name: value}}
        if _has_interpolation(plain):
            continue
        try:
            made = OmegaConf.create(plain)
        except (OmegaConfBaseException, ValueError):  # not representable by OmegaConf: load_run says so
            continue
        try:
            to_settings(made)
        except InputError as error:
            assert_readable(error)


def test_a_configuration_that_fits_is_checked() -> None:
    from omegaconf import OmegaConf

    assert to_settings(OmegaConf.create(BASE)).model.latent_dim == 2
    with pytest.raises(InputError):
        to_settings(OmegaConf.create({**BASE, "seed": "x"}))
