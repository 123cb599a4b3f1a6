"""One-line messages for Hydra's errors: what is wrong with the arguments, and the closest valid ones."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path

import hydra
from hydra import errors as hydra_errors
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaerun.cli.help import GROUPS, choices
from vaerun.config.familiar import BY_NAME, plain_name
from vaerun.config.overrides import QUOTING, unreadable
from vaerun.config.plugins import builtin_config_dir, config_dirs, plugin_config_dirs, unknown_choice
from vaerun.config.settings import dotted_keys, missing_value
from vaerun.config.suggestions import suggest_key
from vaerun.errors import InputError
from vaerun.storage.yaml_files import read_yaml
from vaerun.text import did_you_mean, printable

MAX_LETTERS = 200  # maximum length of an argument quoted in a message
EXAMPLE = "model=vlae"
_NOT_A_NAME = re.compile(r"[\[{]|([-+]?(\d[\d_.]*(e[-+]?\d+)?|inf|nan)|true|false|null)$", re.IGNORECASE)


def explain(error: Exception, words: list[str], run_dir: Container[Path] = ()) -> str:
    """Explain an error raised by Hydra in one line.

    Arguments:
        error: exception raised by Hydra.
        words: flags and overrides from the command line.
        run_dir: the run directory and all its parents.
    """
    from vaerun.sweep.launcher_plugins import missing_extra

    text = str(error)
    if (extra := missing_extra(error)) is not None:
        return extra
    folders = config_dirs()
    if isinstance(error, hydra_errors.OverrideParseException):
        return _not_an_override(str(error.override), text, words, folders)
    if (line := _not_a_choice(words, folders)) is not None:
        return line
    if isinstance(error, hydra_errors.MissingConfigException):
        return _missing_config(text, folders)
    if isinstance(error, hydra_errors.HydraException):
        return _unknown_key(text, words) or _cannot_merge(text) or _several_values(text) or " ".join(text.split())
    if isinstance(error, OmegaConfBaseException):
        return missing_value(text) if "issing mandatory value" in text else " ".join(text.split())
    if isinstance(error, OSError) and error.filename and Path(error.filename).absolute() in run_dir:
        path = printable(error.filename, MAX_LETTERS)
        return f"cannot create the run directory {path}: {error.strerror}; choose another output_dir"
    why = f"{type(error).__name__}: {printable(text, 500)}"
    return _unusable_file() or f"the configuration cannot be composed: {why}"


def _not_an_override(word: str, why: str, words: list[str], folders: list[Path]) -> str:
    """The message for an argument that Hydra cannot parse, for the reason `why`."""
    if "=" in word:
        return unreadable(word, why)
    quoted = printable(word, MAX_LETTERS)
    index = words.index(word) if word in words else 0
    before, after = (words[index - 1] if index else ""), words[index + 1 : index + 2]
    options = {group: choices(group, folders) for group in GROUPS}
    suggestions = [f"{group}={word}" for group in GROUPS if word in options[group]]
    if word in options:
        suggestions = [f"{word}={next((a for a in after if a in options[word]), next(iter(options[word])))}"]
    elif not suggestions and word in (known := _known_keys(words)):
        suggestions = [f"{word}={next((a for a in after if '=' not in a), 'VALUE')}"]
    elif not suggestions and plain_name(word) in BY_NAME:
        return f"'{quoted}' is not an override: write KEY=VALUE.{suggest_key(word, [*GROUPS, *known])}"
    hint = f"; {QUOTING}" if "=" in before and not suggestions else ""  # perhaps the second word of an unquoted value
    return f"'{quoted}' is not an override: write KEY=VALUE, such as {' or '.join(suggestions) or EXAMPLE}{hint}"


def unknown_flag(word: str, words: list[str], flags: Collection[str]) -> str:
    """The message for an argument that starts with a dash; it may be a setting in the style of argparse."""
    name = word.partition("=")[0].lstrip("-")
    known = [*GROUPS, *_known_keys(words)]
    if name in known or plain_name(name) in BY_NAME:
        meaning = f", such as {name}=VALUE" if name in known else f".{suggest_key(name, known)}"
        return f"unknown flag '{word}': settings are written KEY=VALUE, without dashes{meaning}"
    return f"unknown flag '{word}'.{did_you_mean(word, sorted(flags))} (vaerun --help, --hydra-help)"


def _not_a_choice(words: list[str], folders: list[Path]) -> str | None:
    """The message for an argument GROUP=VALUE whose value cannot name a choice, such as a number or a list.

    Hydra raises various errors for these.
    """
    for word in words:
        group, equals, value = word.lstrip("+").partition("=")
        for name in [value, *value.split(",")] if equals and group in GROUPS else []:  # several values make a sweep
            if _NOT_A_NAME.match(name):
                return unknown_choice(group, printable(name, MAX_LETTERS), choices(group, folders))
        if equals and group == "sweep":
            return "sweep is a group of keys: write sweep.KEY=VALUE"
    return None


def _missing_config(text: str, folders: list[Path]) -> str:
    match = re.search(r"Could not find '([^']+)'", text)
    group, _, choice = (match.group(1) if match else "").rpartition("/")
    options = choices(group, folders)
    if not options:
        return " ".join(text.split())
    local = "; on this machine none is needed: sweep.jobs=2 runs two jobs at once" if group == "hydra/launcher" else ""
    return unknown_choice(group, choice, options) + local


def _unknown_key(text: str, words: list[str]) -> str | None:
    match = re.search(r"Could not (?:override|append to|delete from config\.|find) '([^'=]+)", text)
    if match is None:
        return None
    key = match.group(1)
    if available := _choices_with(key):
        return f"{key} is not a key of this {key.split('.')[0]} choice; available with {', '.join(available)}"
    quoted, known = printable(key, MAX_LETTERS), [*GROUPS, *_known_keys(words)]
    if key in known:  # of the default choices, or of some trials of a search
        return f"{quoted} is not a key of these choices: leave it out, or choose others"
    meaning = suggest_key(key, known)
    return f"unknown key '{quoted}'{f'.{meaning}' if meaning else ' (vaerun --cfg job lists all keys)'}"


def _cannot_merge(text: str) -> str | None:
    match = re.match(r"Error merging override (.+)", text)
    if match is None:
        return None
    return (
        f"cannot set '{printable(match.group(1), MAX_LETTERS)}': a list, a group of keys and a single value cannot "
        "replace each other (vaerun --cfg job shows which it is)"
    )


def _several_values(text: str) -> str | None:
    """The message for an argument that only a sweep accepts, such as KEY=A,B, if there is no sweep."""
    if "does not support sweep type" in text:
        return "interval(A,B) is for searches (hydra/sweeper=optuna): give values, such as a,b or range(3)"
    if match := re.match(r"Sweep parameters '(.*)' requires --multirun", text):
        return f"'{printable(match.group(1), MAX_LETTERS)}': several values make a sweep: add -m"
    match = re.match(r"\s*Ambiguous value for argument '(.*)'\n", text)
    if match is None:
        return None
    word = printable(match.group(1), MAX_LETTERS)
    key, _, values = word.partition("=")
    if key in GROUPS:
        return f"'{word}': several values make a sweep: add -m"
    quoted = "" if set(values) & set("'\"") else f""": '{key}="{values}"'"""
    single = f"quote the value if it is one value with a comma{quoted}; a list is written [{values}]"
    return f"'{word}': several values make a sweep: add -m (or {single})"


def _unusable_file() -> str | None:
    """The message for a config file of a trusted package that is not valid YAML, or has an invalid defaults list."""
    for folder in plugin_config_dirs():
        for path in sorted(folder.rglob("*.yaml")):
            try:
                content = read_yaml(path)
            except InputError as error:
                return str(error)
            defaults = content.get("defaults") or [] if isinstance(content, dict) else []
            if not isinstance(defaults, list):
                return f"{path}: defaults must be a list of GROUP: CHOICE"
            for entry in defaults:
                if not isinstance(entry, str | dict):
                    return f"{path}: defaults must be a list of GROUP: CHOICE, and has {printable(entry, 60)}"
    return None


def _choices_with(key: str) -> list[str]:
    """The choices, as GROUP=CHOICE, of the key's group whose files contain the key."""
    group, _, rest = key.partition(".")
    available = []
    for folder in config_dirs():
        for path in sorted((folder / group).glob("*.yaml")) if group in GROUPS and rest else []:
            with suppress(InputError):  # an invalid file is reported when it is chosen
                if rest in dotted_keys(read_yaml(path)):
                    available.append(f"{group}={path.stem}")
    return available


def _known_keys(words: list[str]) -> list[str]:
    """Keys of the configurations composed from the group choices among the arguments, each value of a sweep once."""
    from hydra.core.global_hydra import GlobalHydra

    chosen = {word.split("=")[0]: word.partition("=")[2].split(",") for word in words if word.split("=")[0] in GROUPS}
    points = range(max(map(len, chosen.values()), default=0))
    choices = [[f"{group}={values[i % len(values)]}" for group, values in chosen.items()] for i in points]
    keys: dict[str, None] = {}
    for overrides in [*choices, []]:
        if keys and not overrides:
            break
        try:
            GlobalHydra.instance().clear()
            with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
                cfg = hydra.compose("config", overrides)
            keys |= dict.fromkeys(dotted_keys(OmegaConf.to_container(cfg)))
        except Exception:  # only needed for a hint: ignore further mistakes in the command
            continue
    return list(keys)


@contextmanager
def missing_package(words: list[str]) -> Iterator[None]:
    """Raise InputError if --package names nothing in the configuration; Hydra would print its own line and exit."""
    flags = {word.split("=")[0] for word in words}
    if not flags & {"--package", "-p"} or not flags & {"--cfg", "-c"}:
        yield
        return
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            yield
    except SystemExit as error:
        line = stderr.getvalue().strip()
        if "not found in config" not in line:
            raise
        stderr = io.StringIO()  # do not print it twice: it is part of the error
        raise InputError(f"--package: {line}: name a group or a key, such as --package=model") from error
    finally:
        sys.stderr.write(stderr.getvalue())
