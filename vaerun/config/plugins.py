"""Resolves the classes and functions named by a configuration, from vaerun and from packages that the user trusts.

A package is trusted if it declares an entry point in the group `vaerun.plugins`, or is named in the environment
variable VAERUN_PLUGINS (comma-separated) or by a call of `trust()`; never by a file in a run directory. The `configs/`
folder of a trusted package is added to Hydra's search path.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import traceback
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import cache, partial, update_wrapper
from importlib import metadata
from pathlib import Path
from typing import Any

from vaerun.defaults import own_defaults
from vaerun.errors import InputError
from vaerun.text import did_you_mean, printable

MAX_LETTERS = 200  # maximum length of a _target_
_CONSTRUCTION_ERRORS = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, AssertionError)

_trusted: set[str] = set()


def trust(package: str) -> None:
    """Allow configurations to refer to classes and functions of this top-level package."""
    _trusted.add(package)


@cache
def _declared() -> frozenset[str]:
    installed = {e.value.split(":")[0].split(".")[0] for e in metadata.entry_points(group="vaerun.plugins")}
    named = {name.strip() for name in os.environ.get("VAERUN_PLUGINS", "").split(",")}
    return frozenset(installed | named - {""})


def trusted() -> set[str]:
    """Top-level packages whose classes and functions a configuration may refer to."""
    return {"vaerun"} | _declared() | _trusted


# -- config groups ----------------------------------------------------------------------------------------------------


def builtin_config_dir() -> Path:
    """Folder of vaerun's config groups: inside the installed package, or next to it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def plugin_config_dirs() -> list[Path]:
    """`configs/` of each trusted package except vaerun, located without importing it. Raises InputError if missing."""
    folders = []
    for name in sorted(trusted() - {"vaerun"}):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise InputError(
                f"plugin package '{name}' (VAERUN_PLUGINS or an entry point) is not installed: install it, or add its "
                "parent folder to PYTHONPATH"
            )
        locations = list(spec.submodule_search_locations or []) or [str(Path(spec.origin or ".").parent)]
        folders += [Path(p) / "configs" for p in locations if (Path(p) / "configs").is_dir()]
    return folders


def config_dirs() -> list[Path]:
    """All folders with config groups, starting with vaerun's."""
    return [builtin_config_dir(), *plugin_config_dirs()]


def group_file(group: str, name: str) -> Path:
    """Path of a choice's file. Raises InputError for an unknown choice."""
    folders = config_dirs()
    for folder in folders:
        path = folder / group / f"{name}.yaml"
        if path.name == f"{name}.yaml" and path.is_file():  # rejects names such as ../file
            return path
    raise InputError(unknown_choice(group, name, {p.stem for f in folders for p in (f / group).glob("*.yaml")}))


def unknown_choice(group: str, name: str, known: Iterable[str]) -> str:
    """The error line for an unknown choice of a group."""
    names = sorted(known)
    choices = f"Choices: {', '.join(names)}; those of other packages need VAERUN_PLUGINS=PACKAGE"
    return f"unknown choice {group}={name}.{did_you_mean(name, names)} {choices}"


# -- classes and functions --------------------------------------------------------------------------------------------


def resolve(target: str, package: str) -> Any:
    """Import a class or function by its dotted name.

    Arguments:
        target: dotted name, such as vaerun.inference.Laplace.
        package: required package of targets within vaerun, such as vaerun.inference.

    Raises InputError if it does not exist, or belongs to another part of vaerun or to an untrusted package.
    """
    if len(str(target)) > MAX_LETTERS:  # importing recurses once per component of the name
        raise InputError(f"_target_ '{printable(target, 60)}' has {len(str(target))} characters, too many for a name")
    module_name, _, attribute = str(target).rpartition(".")
    if module_name.split(".")[0] not in trusted():
        raise InputError(
            f"_target_ '{target}' is outside vaerun and the trusted packages ({', '.join(sorted(trusted()))}): "
            "add its package to VAERUN_PLUGINS to trust it"
        )
    try:
        # What a plug-in sets when it is imported must not apply from some moment of a run on.
        with nullcontext() if module_name.split(".")[0] == "vaerun" else own_defaults():
            module = importlib.import_module(module_name)
    except Exception as error:
        if module_name.split(".")[0] == "vaerun" and not isinstance(error, ImportError):
            raise  # a bug
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"_target_ '{target}': cannot import {module_name} ({why})") from error
    if not hasattr(module, attribute) or attribute.startswith("_"):
        raise InputError(f"_target_ '{target}': {module_name} has no public attribute '{attribute}'")
    part = getattr(module, attribute)
    # The name may be an alias: check where the object is defined.
    home = getattr(part, "__module__", None) or ""
    if not callable(part) or home.split(".")[0] not in trusted():
        raise InputError(f"_target_ '{target}' is not a class or function of a trusted package (defined in '{home}')")
    if home.split(".")[0] == "vaerun" and not f"{home}.".startswith(f"{package}."):
        raise InputError(f"_target_ '{target}' cannot be used here: choose one of {package}")
    return part


def instantiate(spec: Mapping[str, Any], *args: Any, package: str, key: str) -> Any:
    """Call `spec["_target_"]` with the positional arguments, and the other keys of `spec` as keyword arguments.

    Arguments:
        spec: a mapping with `_target_`.
        args: positional arguments.
        package: see resolve.
        key: key of the spec in the configuration, for error messages.

    Raises InputError for unexpected or missing keys, and if the call fails.
    """
    if "_target_" not in spec:
        raise InputError(f"{key} has no _target_")
    target, options = _resolve(spec, package, key)
    check_options(target, key, spec, args, options, complete=True)
    return _call(target, key, spec, args, options)


def bind(spec: Mapping[str, Any], package: str, key: str) -> Any:
    """Bind the spec's options to a function, or instantiate a class. Arguments and errors: see instantiate."""
    target, options = _resolve(spec, package, key)
    is_class = inspect.isclass(target)
    check_options(target, key, spec, (), options, complete=is_class)
    if is_class:
        return _call(target, key, spec, (), options)
    return update_wrapper(partial(target, **options), target)  # keep the function's attributes


def check_options(
    target: Any, key: str, spec: Mapping[str, Any], args: tuple[Any, ...], options: dict[str, Any], complete: bool
) -> None:
    """Raise InputError for unexpected options of the target; if `complete`, also for missing ones."""
    signature = inspect.signature(target)
    try:
        (signature.bind if complete else signature.bind_partial)(*args, **options)
    except TypeError as error:
        known = ", ".join(p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY) or "none"
        raise InputError(f"{key} ({spec['_target_']}): {error}; its options: {known}") from error


def _resolve(spec: Mapping[str, Any], package: str, key: str) -> tuple[Any, dict[str, Any]]:
    """Split a spec into its target and options."""
    try:
        target = resolve(spec.get("_target_", ""), package)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    return target, {k: v for k, v in spec.items() if k != "_target_"}


def _call(target: Any, key: str, spec: Mapping[str, Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    # A value of the wrong type, or a target of the wrong kind, is an error in the configuration, not a bug.
    try:
        return target(*args, **options)
    except InputError as error:
        if key in str(error):
            raise
        raise InputError(f"{key}: {error}") from error
    except _CONSTRUCTION_ERRORS as error:
        why = printable(describe_error(error), 200)
        raise InputError(
            f"{key} ({spec['_target_']}) cannot be created from its options ({why}): change them, or choose another"
        ) from error


def describe_error(error: BaseException) -> str:
    """Describe an error by its type, its message, and the innermost line of code outside torch."""
    frames = traceback.extract_tb(error.__traceback__)
    at = next((f for f in reversed(frames) if "torch" not in Path(f.filename).parts), frames[-1])
    return f"{type(error).__name__}: {error}, {Path(at.filename).name} line {at.lineno}"
