"""YAML as plain values: round trips, short decimal numbers, and a one-line ValueError for anything else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from vaerun.errors import InputError
from vaerun.storage.plain_values import MAXIMUM_DEPTH
from vaerun.storage.yaml_files import MAXIMUM_NUMBER_LENGTH, parse_yaml, read_yaml


def test_what_is_written_comes_back() -> None:
    value = {"a": [0, -1, 2**63, 1.5, -1e-30, 1e300, True, None, "é", "0x1f", "1:30", "12", ""], "b": {"c": [{}, []]}}
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("+12", 12), ("-0", 0), ("1_000", 1000), ("0x1f", "0x1f"), ("0b11", "0b11"), ("017", "017"), ("1:30", "1:30"),
     ("1:30.5", "1:30.5"), ("1__0", "1__0"), ("2020-01-31", "2020-01-31"),
     ("!!int '0x1f'", "0x1f"), (".5", 0.5), ("1.5e+3", 1500.0),
     ("1" * MAXIMUM_NUMBER_LENGTH, int("1" * MAXIMUM_NUMBER_LENGTH)), ("x" * 1000, "x" * 1000),
     (f"'{'1' * 1000}'", "1" * 1000)],
)  # fmt: skip
def test_numbers_are_decimal(text: str, value: Any) -> None:
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text",
    ["1" * (MAXIMUM_NUMBER_LENGTH + 1), "0x" + "f" * 5000, "1" + ":1" * 450_000, "1" + ":1" * 450_000 + ".5",
     "[[0b" + "1" * 200 + "]]",
     "!!int '" + "1" * 200 + "'", "!!float '" + "1" * 200 + "'", "{" + "1" * 200 + ": 1}", "!!float ''", "!!int []",
     "[" * 100_000, "- " * 5000, "{a: " * 5000, "[" * (MAXIMUM_DEPTH + 1) + "]" * (MAXIMUM_DEPTH + 1),
     "a: 1\n--- \nb: 2",
     "\udcff", "\0"],
    ids=lambda text: text[:12].strip("\0\udcff"),
)  # fmt: skip
def test_all_else_is_refused_in_one_line_and_at_once(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"^.") as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert time.process_time() - begun < 2


def test_a_file_is_told_of_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff")
    for name in ("a.yaml", "none.yaml"):
        with pytest.raises(InputError, match=rf"{name} as YAML"):
            read_yaml(tmp_path / name)
