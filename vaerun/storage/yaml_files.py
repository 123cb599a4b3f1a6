"""Parses YAML to plain values: files of vaerun and of plug-ins, untrusted files, and values on the command line.

PyYAML accepts integers of any length in bases 2, 8, 10, 16 and 60. Parsing one can take minutes, and Python refuses to
print more than 4300 digits. Here, as in Hydra, integers are short and decimal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from vaerun.errors import InputError
from vaerun.storage.plain_values import MAXIMUM_DEPTH, check_size
from vaerun.storage.untrusted import CONFIG_BYTES, read_bytes
from vaerun.text import printable

MAXIMUM_NUMBER_LENGTH = 100  # characters
CONFIG_VALUES = 10_000  # limit on the values in a config.yaml
_INTEGER = re.compile(r"[-+]?(0|[1-9](_?[0-9])*)")


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader with short decimal numbers and without dates."""


def _number_text(loader: Any, node: Any) -> str:
    text: str = loader.construct_scalar(node)
    if len(text) > MAXIMUM_NUMBER_LENGTH:
        raise ValueError(f"a number of {len(text)} characters is longer than the limit of {MAXIMUM_NUMBER_LENGTH}")
    return text


def _integer(loader: Any, node: Any) -> int | str:
    text = _number_text(loader, node)
    return int(text) if _INTEGER.fullmatch(text) else text


def _float(loader: Any, node: Any) -> float | str:
    text = _number_text(loader, node)
    return text if ":" in text else float(loader.construct_yaml_float(node))


_PlainLoader.yaml_implicit_resolvers = {  # dates stay strings
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _PlainLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _integer)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _float)


def read_yaml(path: Path) -> Any:
    """Read a file of vaerun or of a trusted package. Raises InputError if it is not valid YAML."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as YAML: {printable(error, 300)}") from error


def parse_yaml(text: str, on_event: Callable[[int, Any], None] | None = None) -> Any:
    """Parse a YAML document; integers that are not decimal, such as 0x1f or 1:30, stay strings.

    Arguments:
        text: a single document.
        on_event: called with the index of each parser event and the event, before any value is constructed; may raise
            ValueError.

    Raises ValueError with a one-line message for invalid YAML, deep nesting, or numbers longer than
    MAXIMUM_NUMBER_LENGTH.
    """
    try:
        depth = 0
        for index, event in enumerate(yaml.parse(text, _PlainLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAXIMUM_DEPTH:  # the C loader would recurse until the stack overflows
                raise ValueError("nested too deeply")
            if on_event is not None:
                on_event(index, event)
        return yaml.load(text, _PlainLoader)
    # PyYAML's constructors also leak other exceptions, for malformed dates and numbers.
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_config(path: Path, root: Path | None = None) -> Any:
    """Read a YAML file written by vaerun, which has neither anchors nor tags; for `root`, see open_regular.

    Aliases and merge keys are rejected: a few of them can expand to billions of values.
    """

    def check(index: int, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias (*), which vaerun never writes")
        if index > 4 * CONFIG_VALUES:
            raise ValueError("too many values")

    config = parse_yaml(read_bytes(path, CONFIG_BYTES, root).decode("utf-8"), check)
    check_size(config, CONFIG_VALUES)
    return config
