"""Parses the KEY=VALUE arguments of `vaerun-eval` with Hydra's override grammar."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaerun.config.plugins import group_file
from vaerun.config.settings import schema_keys
from vaerun.config.suggestions import suggest_key
from vaerun.config.validation import SWITCH
from vaerun.errors import InputError
from vaerun.storage.yaml_files import read_yaml
from vaerun.text import printable

CHANGEABLE = ("data", "evaluation", "seed", "trainer.device")
QUOTING = """quote values with spaces, commas, '=', '~' or non-ASCII letters for Hydra and the shell: 'key="value"'"""
SWITCHES = ("evaluation.amis",)  # groups that may be given as true or false
MAX_LETTERS = 10_000  # maximum length of an argument: parsing time grows faster than linearly

_EXAMPLE = "write KEY=VALUE, such as evaluation.samples=20000"
_PLAIN = re.compile(r"[\w./@:%+-]+", re.ASCII)  # values that need no quotes
_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+)*")


def spell_out_switches(words: list[str]) -> list[str]:
    """Replace evaluation.amis=true by evaluation.amis.enabled=true, and false likewise: a value would replace all keys.

    Raises InputError for keys of a group that is switched off.
    """
    spelled = []
    for word in words:
        given, _, value = word.partition("=")
        key = given.lstrip("+")
        values = {part.strip().lower() for part in value.split(",")}
        if key in SWITCHES and values <= {"true", "false"}:
            inner = next((w for w in words if w.lstrip("+").startswith(f"{key}.")), None)
            if inner is not None and values == {"false"}:
                raise InputError(f"{word} leaves it out, and {printable(inner, 100)} would have no effect: omit one")
            word = f"{given}.enabled={value}"
        spelled.append(word)
    return spelled


def parse_overrides(words: list[str], own_data: str | None = None) -> dict[str, Any]:
    """Parse KEY=VALUE arguments to a nested mapping; `data=NAME` is replaced by the contents of that choice's file.

    Arguments:
        words: arguments.
        own_data: name of the run's data set, which `data=NAME` leaves as it is.

    Raises InputError for an argument that is not an override, or whose key an evaluation cannot change.
    """
    overrides = OmegaConf.create()
    for word in sorted(
        spell_out_switches(words), key=lambda w: not w.startswith("data=")
    ):  # first the choice, then overrides of its keys
        key = _key(word)
        value = _value(word)
        if key.startswith("trainer.") and not (key == "trainer.device" and isinstance(value, str)):
            raise InputError(f"cannot set '{word}': of `trainer` only trainer.device=auto, cpu, cuda, cuda:N or mps")
        if key == "data":
            if value == own_data:
                continue
            value = read_yaml(group_file("data", value if isinstance(value, str) else word.partition("=")[2]))
        elif _has_missing(value):
            raise InputError(f"{key} must be given: {key}=VALUE")
        try:
            OmegaConf.update(overrides, key, value, merge=True)
        except (OmegaConfBaseException, AttributeError, ValueError) as error:
            why = printable(error, 200)
            if "Cannot merge" in why:
                why = "a list, a group of keys and a single value cannot replace each other"
            raise InputError(f"cannot set '{printable(word, 100)}': {why}") from error
    container = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def override(key: str, value: Any) -> str:
    """KEY=VALUE in Hydra's syntax, for the value of a setting that is not a mapping."""
    return f"{key}={_word(value)}"


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_word, value))}]"
    text = str(value)
    if not isinstance(value, str) or (_PLAIN.fullmatch(text) and _value(f"x={text}") == text):
        return text
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), text) + '"'


def given_keys(words: Sequence[str]) -> list[str]:
    """The keys of KEY=VALUE arguments."""
    return list(dict.fromkeys(word.lstrip("+~").partition("=")[0] for word in words))


def no_effect(given: Sequence[str], names: Sequence[str], reason: str) -> Iterator[str]:
    """A line that names those of the given keys that are among `names`, or in a group of these, which end in a dot."""
    groups = tuple(name for name in names if name.endswith("."))
    idle = [key for key in given if key in names or f"{key}.".startswith(groups or "?")]
    idle = [key for key in idle if key != "estimator" and not key.endswith(f".{SWITCH}")]
    if idle:
        yield f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect: {reason}"


def idle_in_single_run(words: Sequence[str]) -> list[str]:
    """A line for settings of a sweep in the command of a single run; sweep.table is for vaerun-table."""
    given = [key for key in given_keys(words) if not key.startswith("sweep.table")]
    return list(no_effect(given, ["sweep."], "this is no sweep (-m)"))


def unquote(value: str) -> str:
    """The value of `run=VALUE`: a plain path, or one with quotes or backslashes as in Hydra."""
    if value.startswith(("'", '"')) or "\\" in value:
        parsed = _value(f"run={value}")
        return parsed if isinstance(parsed, str) else value
    return value


def unreadable(word: str, message: str) -> str:
    """The error line for an argument that Hydra's parser rejects with this message."""
    prefix = "LexerNoViableAltException: "
    lines = message.splitlines()
    reason = lines[1] if lines[0].startswith("Error parsing override") and len(lines) > 1 else lines[0]
    if reason.startswith(prefix):  # Hydra repeats the argument, and adds a line with a ^ below the error
        column = len(lines[-2 if lines[-1].startswith("See ") else -1]) - len(prefix) - 1
        reason = f"unexpected {word[column : column + 1]!r}"
    return f"cannot read the override '{printable(word, 200)}': {printable(reason, 200)}; {QUOTING}"


def _key(word: str) -> str:
    """The key of an override, which may be prefixed by + or ++ as in Hydra. Raises InputError if there is none."""
    key, equals, _ = word.partition("=")
    key = key.removeprefix("+").removeprefix("+")
    if key.startswith("~"):
        raise InputError(f"cannot read '{word}': vaerun-eval cannot delete keys; {_EXAMPLE}")
    if not equals or not key:
        raise InputError(f"cannot read '{word}': {_EXAMPLE}")
    if not _is_changeable(key) or key == "evaluation":
        known = [k for k in schema_keys() if _is_changeable(k)]
        meaning = "" if key in schema_keys() else suggest_key(key, known, "which an evaluation cannot change")
        takes = f"run=DIR, {', '.join(CHANGEABLE)} and their keys"
        raise InputError(f"vaerun-eval cannot set '{key}': it takes {takes}{meaning and '.'}{meaning}")
    if not _KEY.fullmatch(key):
        raise InputError(f"unknown key '{key}': {_EXAMPLE}")
    return key


def _is_changeable(key: str) -> bool:
    return any(key == k or key.startswith(f"{k}.") for k in CHANGEABLE)


def _value(word: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser  # slow, and not needed for --help
    from hydra.errors import HydraException

    if len(word) > MAX_LETTERS:
        raise InputError(f"'{printable(word, 100)}' has {len(word)} letters: at most {MAX_LETTERS} are read")
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except (HydraException, ValueError) as error:
        raise InputError(unreadable(word, str(error))) from error
    except RecursionError as error:
        raise InputError(f"cannot read the override '{printable(word, 100)}': it is nested too deeply") from error
    if override.is_sweep_override():
        raise InputError(
            f"'{printable(word, 200)}': several values make a sweep, and vaerun-eval evaluates once: write a list as "
            "[a,b], and quote a single value that has a comma"
        )
    return override.value()


def _has_missing(value: Any) -> bool:
    """Whether the value is or contains `???`, which marks a missing value."""
    if isinstance(value, dict | list):
        return any(_has_missing(v) for v in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and value == "???"
