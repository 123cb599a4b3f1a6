"""What to say of words that are no settings: a choice without its group, a key without a value, several values."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from vaerun.cli.help import GROUPS, choices
from vaerun.config.plugins import no_choice
from vaerun.errors import InputError
from vaerun.text import printable

QUOTE = """quote a value that has spaces, commas, '=', '~' or letters beyond ASCII twice: 'key="value"'"""
EXAMPLE = "model=vlae"
_NO_NAME = re.compile(r"[\[{]|([-+]?(\d[\d_.]*(e[-+]?\d+)?|inf|nan)|true|false|null)$", re.IGNORECASE)
MOST = 200  # letters of a word that are shown


def unreadable(word: str, why: str, arguments: list[str], folders: list[Path], keys: Callable[[], list[str]]) -> str:
    """Of a word that Hydra cannot parse.

    Arguments:
        why: Hydra's own message.
        arguments: all words.
        folders: with the config groups.
        keys: gives the known keys.
    """
    if "=" in word:
        return f"cannot read the override '{printable(word, MOST)}': {printable(why.splitlines()[0], MOST)}; {QUOTE}"
    place = arguments.index(word) if word in arguments else 0
    before, after = (arguments[place - 1] if place else ""), arguments[place + 1 : place + 2]
    options = {group: choices(group, folders) for group in GROUPS}
    shown = [f"{group}={word}" for group in GROUPS if word in options[group]]
    if word in options:
        shown = [f"{word}={next((a for a in after if a in options[word]), next(iter(options[word])))}"]
    elif not shown and word in keys():
        shown = [f"{word}={next((a for a in after if '=' not in a), 'VALUE')}"]
    hint = f"; {QUOTE}" if "=" in before and not shown else ""  # the second word of a value, maybe
    return f"'{printable(word, MOST)}' is no setting: settings are KEY=VALUE, as {' or '.join(shown) or EXAMPLE}{hint}"


def no_name(arguments: list[str], folders: list[Path]) -> str | None:
    """Of the first word GROUP=VALUE whose value is a number, a list or another thing that names no choice, or None.

    Hydra fails on it within its own work, each time in other words.
    """
    for word in arguments:
        group, equals, value = word.lstrip("+").partition("=")
        for name in [value, *value.split(",")] if equals and group in GROUPS else []:  # several make a sweep
            if _NO_NAME.match(name):
                return no_choice(group, printable(name, MOST), choices(group, folders))
        if equals and group == "sweep":
            return "sweep is a group of settings: give sweep.KEY=VALUE"
    return None


def several_values(text: str) -> str | None:
    """Of a word KEY=A,B where there is no sweep, which Hydra's message names; None for another message."""
    found = re.match(r"\s*Ambiguous value for argument '(.*)'\n", text)
    if found is None:
        return None
    word = printable(found.group(1), MOST)
    key, _, values = word.partition("=")
    if key in GROUPS:
        return f"'{word}': several values make a sweep: add -m"
    quoted = "" if set(values) & set("'\"") else f""": '{key}="{values}"'"""
    whole = f"quote the value if it is one value with a comma{quoted}; a list is written [{values}]"
    return f"'{word}': several values make a sweep: add -m (or {whole})"


@contextmanager
def told_of_packages(arguments: list[str]) -> Iterator[None]:
    """Hydra writes one line of its own, and exits, where --package names what the configuration has not."""
    flags = {word.split("=")[0] for word in arguments}
    if not flags & {"--package", "-p"} or not flags & {"--cfg", "-c"}:
        yield
        return
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            yield
    except SystemExit as left:
        line = told.getvalue().strip()
        if "not found in config" not in line:
            raise
        told = io.StringIO()  # it is part of the error
        raise InputError(f"--package: {line}: name a group or a key, such as --package=model") from left
    finally:
        sys.stderr.write(told.getvalue())
