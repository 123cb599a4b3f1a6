"""JSON files: written atomically, and read with limits on their size and content."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from vaerun.storage.atomic import write_atomically
from vaerun.storage.plain_values import check_size, nonfinite_to_none
from vaerun.storage.untrusted import RESULT_BYTES, open_regular, read_bytes

MAXIMUM_VALUES = 10_000_000
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escaped surrogate; on its own it is not valid Unicode
_TAIL_BYTES = 1 << 16


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as indented JSON; NaN and infinities become null, and undecodable bytes of paths become ?."""
    text = json.dumps(nonfinite_to_none(content), indent=2, ensure_ascii=False)
    write_atomically(path, f"{text}\n".encode("utf-8", "replace"))


def read_json(path: Path, maximum_bytes: int = RESULT_BYTES, root: Path | None = None) -> Any:
    """Read a JSON file, restricted to 64-bit integers and valid Unicode, so that its value can be written again.

    Raises OSError or ValueError; for `root`, see open_regular.
    """
    value = parse_json(read_bytes(path, maximum_bytes, root).decode("utf-8"))
    check_size(value, MAXIMUM_VALUES)
    return value


def parse_json(text: str) -> Any:
    """Parse JSON text. Raises ValueError for invalid JSON, and for values that read_json rejects."""
    try:
        value = json.loads(text, parse_int=_parse_int64)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("text that is not valid Unicode (a lone surrogate)") from error
    return value


def _parse_int64(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"an integer of {len(text)} characters does not fit in 64 bits")
    return int(text)


def read_last_lines(path: Path) -> list[dict[str, Any]]:
    """Complete objects in the last 64 KiB of a JSON Lines file, oldest first; [] if it cannot be read."""
    try:
        with open_regular(path, path.parent) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).splitlines()
    except (OSError, ValueError):
        return []
    objects = []
    for line in lines:
        try:
            value = parse_json(line.decode())
        except ValueError:  # the first line may be truncated, and the last one incomplete
            continue
        if isinstance(value, dict):
            objects.append(value)
    return objects
