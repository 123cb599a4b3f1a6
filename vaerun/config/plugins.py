"""Where parts of a model may come from: vaerun itself, and packages that the user has named as trusted.

A package is trusted when it is installed with an entry point in the group `vaerun.plugins`, or is named in the
environment variable VAERUN_PLUGINS (comma-separated), or by `trust()` in code; never by a file of a run directory. A
trusted package's `configs/` folder joins the search path of config groups.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import traceback
from collections.abc import Iterable, Mapping
from functools import cache, partial, update_wrapper
from importlib import metadata
from pathlib import Path
from typing import Any

from vaerun.errors import InputError
from vaerun.text import did_you_mean, printable

MOST_LETTERS = 200  # of a part's name
_UNFIT = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, AssertionError)

_trusted: set[str] = set()


def trust(package: str) -> None:
    """Let configurations name classes and functions of this top-level package."""
    _trusted.add(package)


@cache
def _declared() -> frozenset[str]:
    named = {e.value.split(":")[0].split(".")[0] for e in metadata.entry_points(group="vaerun.plugins")}
    return frozenset(named | {n.strip() for n in os.environ.get("VAERUN_PLUGINS", "").split(",") if n.strip()})


def trusted() -> set[str]:
    """Top-level packages whose parts a configuration may name."""
    return {"vaerun"} | _declared() | _trusted


def own_config_folder() -> Path:
    """Where vaerun's own config groups are: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def group_file(group: str, name: str) -> Path:
    """The file of a group's choice. Raises InputError where there is none."""
    folders = [own_config_folder(), *config_folders()]
    for folder in folders:
        path = folder / group / f"{name}.yaml"
        if path.name == f"{name}.yaml" and path.is_file():
            return path
    raise InputError(
        unknown_choice(group, name, {p.stem for folder in folders for p in (folder / group).glob("*.yaml")})
    )


def unknown_choice(group: str, name: str, known: Iterable[str]) -> str:
    """The line for a choice that a group does not have."""
    names = sorted(known)
    choices = f"Choices: {', '.join(names)}; those of other packages need VAERUN_PLUGINS=PACKAGE"
    return f"unknown choice {group}={name}.{did_you_mean(name, names)} {choices}"


def config_folders() -> list[Path]:
    """`configs/` folders of the trusted packages (vaerun's own left out), without importing them."""
    found = []
    for name in sorted(trusted() - {"vaerun"}):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise InputError(
                f"plugin package '{name}' (VAERUN_PLUGINS or an entry point) cannot be found: "
                "install it, or add the folder that it is in to PYTHONPATH"
            )
        places = list(spec.submodule_search_locations or []) or [str(Path(spec.origin or ".").parent)]
        found += [Path(p) / "configs" for p in places if (Path(p) / "configs").is_dir()]
    return found


def resolve(target: str, kind: str) -> Any:
    """The class or function of a dotted name.

    Arguments:
        target: e.g. vaerun.inference.Laplace.
        kind: the part of vaerun that such a part is from, e.g. vaerun.inference: what else vaerun has is no part.

    Raises InputError where there is none, its package is not trusted, or it is of another kind.
    """
    if len(str(target)) > MOST_LETTERS:  # importing goes down one call for each part of a name
        raise InputError(f"_target_ '{printable(target, 60)}' has {len(str(target))} characters: it names no part")
    module_name, _, attribute = str(target).rpartition(".")
    if module_name.split(".")[0] not in trusted():
        raise InputError(
            f"_target_ '{target}' is outside vaerun and the trusted packages ({', '.join(sorted(trusted()))}): "
            "name its package in VAERUN_PLUGINS to trust it"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if module_name.split(".")[0] == "vaerun" and not isinstance(error, ImportError):
            raise  # a bug of ours
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"_target_ '{target}': cannot import {module_name} ({why})") from error
    if not hasattr(module, attribute) or attribute.startswith("_"):
        raise InputError(f"_target_ '{target}': {module_name} has no '{attribute}' to be chosen")
    found = getattr(module, attribute)
    # The name may be an alias: what counts is where the object itself lives.
    home = getattr(found, "__module__", None) or ""
    if not callable(found) or home.split(".")[0] not in trusted():
        raise InputError(f"_target_ '{target}' is no class or function of a trusted package (it lives in '{home}')")
    if home.split(".")[0] == "vaerun" and not f"{home}.".startswith(f"{kind}."):
        raise InputError(f"_target_ '{target}' is not of the kind that is needed here: choose one of {kind}")
    return found


def _resolved(target: str, kind: str, where: str) -> Any:
    """The same; what is wrong with the name is said with the key that it is of."""
    try:
        return resolve(target, kind)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def bind(spec: Mapping[str, Any], kind: str, where: str) -> Any:
    """A function with the options of `spec` bound, or an instance of a class made with them.

    Raises InputError for options that it does not take, or a class that cannot be made of them.
    """
    target = _resolved(spec.get("_target_", ""), kind, where)
    given = {k: v for k, v in spec.items() if k != "_target_"}
    check_options(target, where, spec, (), given, inspect.isclass(target))
    if inspect.isclass(target):
        return _made(target, where, spec, (), given)
    return update_wrapper(partial(target, **given), target)  # with what the function says of itself


def check_options(
    target: Any, where: str, spec: Mapping[str, Any], args: tuple[Any, ...], given: dict[str, Any], whole: bool
) -> None:
    """Raises InputError where `target` does not take these arguments; `whole`: where it misses some, too."""
    signature = inspect.signature(target)
    try:
        (signature.bind if whole else signature.bind_partial)(*args, **given)
    except TypeError as error:
        options = ", ".join(p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY) or "none"
        raise InputError(f"{where} ({spec['_target_']}): {error}; its options: {options}") from error


def build(spec: Mapping[str, Any], *args: Any, kind: str, where: str) -> Any:
    """Call `spec["_target_"]` with the positional arguments and its other keys.

    Arguments:
        spec: a mapping with `_target_`.
        kind: see resolve.
        where: the configuration key, for messages.

    Raises InputError for keys that the target does not take or misses, and where it cannot be made of their values.
    """
    if "_target_" not in spec:
        raise InputError(f"{where} has no _target_")
    target = _resolved(spec["_target_"], kind, where)
    given = {k: v for k, v in spec.items() if k != "_target_"}
    check_options(target, where, spec, args, given, True)
    return _made(target, where, spec, args, given)


def _made(target: Any, where: str, spec: Mapping[str, Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    # Values of a wrong type, or a part in another one's place: the configuration's fault, and it may be a stranger's.
    try:
        return target(*args, **given)
    except InputError as error:
        if where in str(error):
            raise
        raise InputError(f"{where}: {error}") from error
    except _UNFIT as error:
        why = printable(told(error), 200)
        raise InputError(
            f"{where} ({spec['_target_']}) cannot be made of its options ({why}): give others, or choose another part"
        ) from error


def told(error: BaseException) -> str:
    """An error's kind, its text, and for whoever writes the part the line, outside torch, that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = next((f for f in reversed(frames) if "torch" not in Path(f.filename).parts), frames[-1])
    return f"{type(error).__name__}: {error}, {Path(at.filename).name} line {at.lineno}"
