"""Yaml as plain values, whoever wrote it: all of vaerun's files, those of plug-ins and strangers, and words.

PyYAML knows numbers of any length in base 2, 8, 10, 16 and 60. Reading them can take minutes, and Python prints none of
more than 4300 digits. Nobody means such a number, so here one is short and decimal, as it is for Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from vaerun.errors import InputError
from vaerun.storage.untrusted import CONFIG_BYTES, CONFIG_VALUES, DEPTH, check_size, read_bytes
from vaerun.text import printable

LETTERS = 100  # of a number
_WHOLE = re.compile(r"[-+]?(0|[1-9](_?[0-9])*)")


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's loader but for numbers and dates."""


def _letters(loader: Any, node: Any) -> str:
    text: str = loader.construct_scalar(node)
    if len(text) > LETTERS:
        raise ValueError(f"it has a number of {len(text)} characters, where at most {LETTERS} make sense")
    return text


def _whole(loader: Any, node: Any) -> int | str:
    text = _letters(loader, node)
    return int(text) if _WHOLE.fullmatch(text) else text


def _fraction(loader: Any, node: Any) -> float | str:
    text = _letters(loader, node)
    return text if ":" in text else float(loader.construct_yaml_float(node))


_Plain.yaml_implicit_resolvers = {  # a date is a word
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in _Plain.yaml_implicit_resolvers.items()
}
_Plain.add_constructor("tag:yaml.org,2002:int", _whole)
_Plain.add_constructor("tag:yaml.org,2002:float", _fraction)


def read_yaml(path: Path) -> Any:
    """The values of one of vaerun's own files or of a trusted package's. Raises InputError where it is no yaml."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as yaml: {printable(error, 300)}") from error


def parse_yaml(text: str, look: Callable[[int, Any], None] | None = None) -> Any:
    """The value of a yaml text; an integer that is not decimal, such as 0x1f or 1:30, is the word as it stands.

    Arguments:
        text: of one document.
        look: called with each event and its number before a value is made; may raise ValueError.

    Raises ValueError in one line for what is no yaml, nested too deeply, or has a number longer than any that is meant.
    """
    try:
        depth = 0
        for count, event in enumerate(yaml.parse(text, _Plain)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:  # the loader in C would go down until the stack ends
                raise ValueError("nested too deeply")
            if look is not None:
                look(count, event)
        return yaml.load(text, _Plain)
    # Beyond YAMLError the constructors of PyYAML let pass what they meet: dates and numbers that are none.
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_config(path: Path, within: Path | None = None) -> Any:
    """The plain values of a yaml file that vaerun has written, which has neither anchors nor tags.

    An alias can stand for billions of values, and so can a merge of mappings, in memory too.
    """

    def look(count: int, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias (*), which vaerun never writes")
        if count > 4 * CONFIG_VALUES:
            raise ValueError("too many values")

    found = parse_yaml(read_bytes(path, CONFIG_BYTES, within).decode("utf-8"), look)
    check_size(found, CONFIG_VALUES)
    return found
