"""Hydra called from vaerun's own entry point, and Hydra's errors in one line each."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra import errors as hydra_errors
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaerun.cli.help import GROUPS, choices
from vaerun.cli.overrides import MOST, no_name, several_values, told_of_packages, unreadable
from vaerun.config.plugins import config_folders, group_file, no_choice, own_config_folder
from vaerun.config.settings import Settings, keys, missing, short_name
from vaerun.errors import InputError
from vaerun.incidental import is_incidental
from vaerun.storage.yaml_files import read_yaml
from vaerun.text import did_you_mean, printable

if TYPE_CHECKING:
    from vaerun.launch.job import Job

FLAGS = {
    "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r", "--multirun", "-m",
    "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--info", "-i",
}  # fmt: skip


def _plain(root: Any) -> dict[str, Any]:
    return {str(k): _container(root, str(k)) for k in root if k != "hydra"}


def _container(root: Any, key: str) -> Any:
    value = root._get_node(key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else root[key]


absent: set[Path] = set()
"""Folders that were not there before Hydra made the run's: what may be removed again when the run is refused."""

_places: set[Path] = set()  # the run's folder and all above it


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system: making it will say so
        return False


def _run_dir(_root_: Any) -> str:
    given = _root_.output_dir
    folder = Path("outputs") / short_name(_plain(_root_)) if given is None else Path(str(given))
    place = folder.absolute()
    _places.update((place, *place.parents))
    absent.update(p for p in (place, *place.parents) if not _exists(p))
    return str(folder)


def replicas(cfg: DictConfig, settings: Settings, folder: Path, words: list[str], hydra_text: str) -> list[Job]:
    """The runs of trainer.replicas=N: seeds seed ... seed + N - 1, each in the folder that it would have alone.

    With an output_dir they are seedN within it.
    """
    from vaerun.launch.job import Job

    found, outputs = [], Path("outputs").absolute()
    words = [word for word in words if not word.lstrip("+").startswith(("seed=", "trainer.replicas="))]
    for seed in range(settings.seed, settings.seed + settings.trainer.replicas):
        own = copy.deepcopy(cfg)
        own.seed = seed
        place = folder / f"seed{seed}" if cfg.output_dir is not None else outputs / short_name(_plain(own))
        single = replace(settings, seed=seed, trainer=replace(settings.trainer, replicas=1))
        found.append(Job(single, place, [*words, f"seed={seed}"], hydra_text, label=f"seed {seed}"))
    return found


def _job_dir(_root_: Any) -> str:
    return short_name(_plain(_root_))


def _sweep_dir(arguments: list[str]) -> Callable[[Any], str]:
    # The same sweep has the same folder; it cannot be read off a job's configuration, where one point of it is set.
    # More seeds or other cells of an experiment, and settings that change no result, are no other sweep.
    cells = ("seed=", "cell=", "experiment=", "output_dir=", "hydra", "~hydra", "-")
    words = sorted(a for a in arguments if not a.startswith(cells) and not is_incidental(a.split("=")[0].lstrip("+")))
    names = [a.partition("=")[2] for a in arguments if a.startswith("experiment=")]
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in "-".join(names)) or "sweep"
    if words or not names:
        name += "-" + hashlib.sha256("\n".join(words).encode()).hexdigest()[:10]
    here = Path.cwd()  # jobs on other machines have working folders of their own

    def resolver(_root_: Any) -> str:
        given = _root_.output_dir
        place = here / ("outputs/sweeps/" + name if given is None else str(given))
        _places.update((place, *place.parents))
        return str(place)

    return resolver


CELLS = "~hydra.sweeper.params.cell"


def without_cells(arguments: list[str]) -> list[str]:
    """The words of a sweep; with a model of its own it does not go through the cells of its experiment as well."""
    given = {a.partition("=")[0]: a.partition("=")[2] for a in arguments}
    if "model" not in given or "experiment" not in given or {"cell", CELLS} & given.keys():
        return arguments
    try:
        plain = read_yaml(group_file("experiment", given["experiment"]))
    except InputError:  # several, or one that there is not: Hydra says so
        return arguments
    params = ((plain.get("hydra") or {}).get("sweeper") or {}).get("params") or {}
    return [*arguments, CELLS] if "cell" in params else arguments


def _check_flags(arguments: list[str]) -> None:
    """Raises InputError where Hydra's own parser would print its usage and leave."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message} (vaerun --help, --hydra-help)")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(arguments)


def run_hydra(job: Callable[[DictConfig], Any], arguments: list[str]) -> None:
    """Compose and run (once or as a sweep). Errors of Hydra's come out as exceptions, whole."""
    for word in arguments:
        if word.startswith("-") and word.split("=")[0] not in FLAGS:
            raise InputError(f"unknown flag '{word}'.{did_you_mean(word, sorted(FLAGS))} (vaerun --help, --hydra-help)")
        if word.startswith("="):
            raise InputError(f"cannot read the override '{word}': there is no key before the '='")
    _check_flags(arguments)
    flags = {a.split("=")[0] for a in arguments}
    for word in arguments:
        key, _, value = word.partition("=")
        if (
            flags & {"-m", "--multirun"}
            and key == "output_dir"
            and "," in value
            and not value.startswith(("'", '"', "["))
        ):
            raise InputError(f"'{word}': a sweep has one folder, and its jobs theirs inside it: give one output_dir")
    if flags & {"-m", "--multirun"} and flags & {"--cfg", "-c", "--info", "-i", "-sc", "--shell-completion"}:
        raise InputError("a sweep (-m) has no one configuration: leave -m out, or use --check -m to see its jobs")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print several lines and exit 1
    OmegaConf.register_new_resolver("vaerun.run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("vaerun.job_dir", _job_dir, replace=True)
    OmegaConf.register_new_resolver("vaerun.sweep_dir", _sweep_dir(arguments), replace=True)
    from vaerun.sweep.launcher_plugins import prefer_own_presets

    prefer_own_presets()
    extra = [f"file://{p}" for p in config_folders()]
    if extra and not any(a.startswith("hydra.searchpath") for a in arguments):
        sys.argv = [sys.argv[0], *arguments, f"hydra.searchpath=[{','.join(extra)}]"]
    with warnings.catch_warnings():
        # Of a folder in hydra.searchpath that there is not, or that is written in another way than file://FOLDER.
        warnings.filterwarnings("error", message=".*is not available", category=UserWarning)
        with told_of_packages(arguments):
            hydra.main(version_base="1.3", config_path=str(own_config_folder()), config_name="config")(job)()


def explain(error: BaseException, arguments: list[str]) -> str | None:
    """One line for what the user got wrong, with the closest valid name; None for anything else."""
    from vaerun.sweep.launcher_plugins import missing_extra

    text = str(error)
    extra = missing_extra(error)
    if extra is not None:
        return extra
    if isinstance(error, hydra_errors.OverrideParseException):
        folders = [own_config_folder(), *config_folders()]
        return unreadable(str(error.override), text, arguments, folders, lambda: _known_keys(arguments))
    composing = isinstance(error, hydra_errors.HydraException | OmegaConfBaseException) or _in_composing(error)
    unnamed = no_name(arguments, [own_config_folder(), *config_folders()]) if composing else None
    if unnamed is not None:
        return unnamed
    if isinstance(error, hydra_errors.MissingConfigException):
        found = re.search(r"Could not find '([^']+)'", text)
        group, _, choice = (found.group(1) if found else "").rpartition("/")
        options = choices(group, [own_config_folder(), *config_folders()])
        if options:
            return no_choice(group, choice, options)
        return " ".join(text.split())
    if isinstance(error, hydra_errors.ConfigCompositionException | hydra_errors.HydraException):
        found = re.search(r"Could not (?:override|append to|delete|find) '([^'=]+)", text)
        if found:
            name = found.group(1)
            elsewhere = _choices_with(name)
            if elsewhere:
                group = name.split(".")[0]
                return f"{name} is no setting of the {group} chosen here; {', '.join(elsewhere)} would have it"
            known = [*GROUPS, *_known_keys(arguments)]
            if name in known:  # of some jobs of a sweep, and not of all
                return (
                    f"{printable(name, MOST)} is no setting of one of the jobs: sweep over what has it, or leave it out"
                )
            return (
                f"unknown key '{printable(name, MOST)}'.{did_you_mean(name, known)} (vaerun --cfg job lists all keys)"
            )
        merging = re.match(r"Error merging override (.+)", text)
        if merging:
            return (
                f"cannot set '{printable(merging.group(1), MOST)}': that is a list, a group of keys or a single value "
                "where another of these belongs (vaerun --cfg job shows which)"
            )
        if "does not support sweep type" in text:
            return "interval(A,B) is for searches (hydra/sweeper=optuna): give values, such as a,b or range(3)"
        return several_values(text) or " ".join(text.split())
    if "issing mandatory value" in text and isinstance(error, OmegaConfBaseException):
        return missing(str(error))
    if isinstance(error, OSError) and error.filename and Path(error.filename).absolute() in _places:
        return f"cannot make the run's folder: {error.filename}: {error.strerror}; choose another output_dir"
    if isinstance(error, OmegaConfBaseException):
        return " ".join(text.split())
    if _in_composing(error):
        why = f"{type(error).__name__}: {printable(text, 500)}"
        return _unusable_file() or f"the configuration cannot be composed: {why}"
    return None


def _in_composing(error: BaseException) -> bool:
    """Whether Hydra raised it at its own work, on the user's words and files, and not what it called of vaerun."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_globals.get("__name__", "") for frame in frames]
    last = max((i for i, name in enumerate(modules) if name.startswith("vaerun")), default=-1)
    inner = {name.partition(".")[0] for name in modules[last + 1 :]}
    composes = last >= 0 and (modules[last] == __name__ or frames[last].f_code is _plan_code())
    return composes and bool(inner & {"hydra", "omegaconf"})


def _plan_code() -> CodeType:
    """Where the jobs of a sweep are composed."""
    from vaerun.sweep.sweep import Sweep

    return Sweep.plan.__code__


def _unusable_file() -> str | None:
    """The first file of a trusted package's config groups that is no yaml, or has no defaults that Hydra knows."""
    for folder in config_folders():
        for path in sorted(folder.rglob("*.yaml")):
            try:
                found = read_yaml(path)
            except InputError as error:
                return str(error)
            defaults = found.get("defaults") or [] if isinstance(found, dict) else []
            if not isinstance(defaults, list):
                return f"{path}: defaults is a list of GROUP: CHOICE"
            for entry in defaults:
                if not isinstance(entry, str | dict):
                    return f"{path}: defaults has the entry {printable(entry, 60)}, and they are GROUP: CHOICE"
    return None


def _choices_with(name: str) -> list[str]:
    """The choices GROUP=CHOICE, of the key's own group, whose files have this key: it is right, and out of place."""
    group, _, rest = name.partition(".")
    found = []
    for folder in (own_config_folder(), *config_folders()):
        for path in sorted((folder / group).glob("*.yaml")) if group in GROUPS and rest else []:
            with suppress(InputError):  # it is told of where it is chosen
                if rest in keys(read_yaml(path)):
                    found.append(f"{group}={path.stem}")
    return found


def _known_keys(arguments: list[str]) -> list[str]:
    """Keys of the configuration that the command's group choices alone would compose."""
    from hydra.core.global_hydra import GlobalHydra

    chosen = [a for a in arguments if a.split("=")[0] in GROUPS and "," not in a]
    for overrides in (chosen, []):
        try:
            GlobalHydra.instance().clear()
            with hydra.initialize_config_dir(str(own_config_folder()), version_base="1.3"):
                cfg = hydra.compose("config", overrides)
            return list(keys(OmegaConf.to_container(cfg)))
        except Exception:  # this only looks for a hint: a second mistake in the same command is no reason to fail here
            continue
    return []
