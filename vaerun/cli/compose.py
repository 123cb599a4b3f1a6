"""Calls Hydra from vaerun's entry point: flags, names of run directories, and config groups of other packages."""

from __future__ import annotations

import copy
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.callbacks import Callbacks
from omegaconf import DictConfig, OmegaConf

from vaerun.cli.output_dir import OutputDir
from vaerun.cli.override_errors import explain, missing_package, unknown_flag
from vaerun.config.composing import CompositionError
from vaerun.config.hydra_settings import write_later
from vaerun.config.identity import short_name
from vaerun.config.plugins import builtin_config_dir, group_file, plugin_config_dirs
from vaerun.config.schema import Settings
from vaerun.errors import InputError
from vaerun.incidental import is_incidental
from vaerun.storage.yaml_files import read_yaml

if TYPE_CHECKING:
    from vaerun.launch.job import Job

MULTIRUN = {"-m", "--multirun"}
_SHOW = {"--cfg", "-c", "--info", "-i", "-sc", "--shell-completion"}
FLAGS = MULTIRUN | _SHOW | {
    "--hydra-help", "--version", "--resolve", "--package", "-p", "--run", "-r", "--config-path", "-cp",
    "--config-name", "-cn", "--config-dir", "-cd",
}  # fmt: skip


def hydra_application(task: Callable[[DictConfig], Any], words: list[str], output_dir: OutputDir) -> Callable[[], Any]:
    """Return Hydra's application, which composes the configuration and calls the task (with -m: for each job).

    Arguments:
        task: called with the configuration.
        words: flags and overrides from the command line.
        output_dir: records which folder Hydra will create.

    Raises InputError for unknown flags.
    """
    _check_words(words)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints several lines and exits with 1
    resolvers = {"run_dir": _run_dir, "job_dir": _job_dir, "sweep_dir": _sweep_dir(words, output_dir)}
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(f"vaerun.{name}", resolver, replace=True)
    from vaerun.sweep.launcher_plugins import prefer_own_presets

    prefer_own_presets()
    folders = [f"file://{p}" for p in plugin_config_dirs()]
    if folders and not any(word.startswith("hydra.searchpath") for word in words):
        words = [*words, f"hydra.searchpath=[{','.join(folders)}]"]
    sys.argv = [sys.argv[0], *words]  # Hydra reads its arguments from there
    application: Callable[[], Any] = hydra.main(
        version_base="1.3", config_path=str(builtin_config_dir()), config_name="config"
    )(task)
    return application


@contextmanager
def watching_run_dir(output_dir: OutputDir) -> Iterator[None]:
    """While active, the folder of a single run is recorded before Hydra creates it, and Hydra writes no files there."""
    original = Callbacks.on_run_start  # the last that Hydra calls before it creates the folder

    def on_run_start(self: Callbacks, config: DictConfig, **options: Any) -> None:
        write_later(config)
        output_dir.expect(Path(str(config.hydra.run.dir)).absolute())
        original(self, config, **options)

    Callbacks.on_run_start = on_run_start  # type: ignore[method-assign]
    try:
        yield
    finally:
        Callbacks.on_run_start = original  # type: ignore[method-assign]


@contextmanager
def readable_errors(words: list[str], output_dir: OutputDir) -> Iterator[None]:
    """Turn Hydra's errors about the command line into a one-line InputError."""
    try:
        with warnings.catch_warnings(), missing_package(words):
            # A folder in hydra.searchpath does not exist, or is not written as file://FOLDER.
            warnings.filterwarnings("error", message=".*is not available", category=UserWarning)
            yield
    except CompositionError as error:
        line = explain(error.error, words, output_dir.path)
        output_dir.remove_empty()
        raise InputError(line) from error


def _check_words(words: list[str]) -> None:
    """Raise InputError where Hydra would print its usage and exit, or give a less helpful message."""
    from hydra._internal.utils import get_args_parser

    flags = {word.split("=")[0] for word in words}
    for word in words:
        key, _, value = word.partition("=")
        if word.startswith("-") and key not in FLAGS:
            raise InputError(unknown_flag(word, words, FLAGS))
        if key.lstrip("+") == "hydra.mode":
            raise InputError(f"'{word}': leave it out, and write -m for a sweep")
        if not key and word:
            raise InputError(f"cannot read the override '{word}': there is no key before the '='")

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message} (vaerun --help, --hydra-help)")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(words)
    if not flags & MULTIRUN:
        return
    for word in words:
        key, _, value = word.partition("=")
        if key == "output_dir" and "," in value and not value.startswith(("'", '"', "[")):
            raise InputError(f"'{word}': a sweep has one folder, which contains those of its jobs: give one output_dir")
    if flags & _SHOW:
        raise InputError("a sweep (-m) has no single configuration: leave out -m, or use --check -m to see its jobs")


# -- folders ----------------------------------------------------------------------------------------------------------


def _plain(root: Any) -> dict[str, Any]:
    """The resolved configuration without the `hydra` group."""
    return {str(key): _container(root, str(key)) for key in root if key != "hydra"}


def _container(root: Any, key: str) -> Any:
    value = root._get_node(key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else root[key]


def _run_dir(_root_: Any) -> str:
    named = _root_.output_dir
    return str(Path("outputs") / short_name(_plain(_root_)) if named is None else named)


def _job_dir(_root_: Any) -> str:
    return short_name(_plain(_root_))


def _sweep_dir(words: list[str], output_dir: OutputDir) -> Callable[[Any], str]:
    # The name is a hash of the sweep's arguments: a job's configuration describes only one point of the sweep.
    # More seeds, other cells of an experiment, and settings that cannot affect results do not change it.
    ignored = ("seed=", "cell=", "experiment=", "output_dir=", "hydra", "~hydra", "-")
    kept = sorted(w for w in words if not w.startswith(ignored) and not is_incidental(w.split("=")[0].lstrip("+")))
    experiments = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in "-".join(experiments)) or "sweep"
    if kept or not experiments:
        name += "-" + hashlib.sha256("\n".join(kept).encode()).hexdigest()[:10]
    here = Path.cwd()  # jobs on other machines have a different working directory

    def resolver(_root_: Any) -> str:
        named = _root_.output_dir
        folder = here / ("outputs/sweeps/" + name if named is None else str(named))
        output_dir.expect(folder)
        return str(folder)

    return resolver


# -- several runs -----------------------------------------------------------------------------------------------------

NO_CELLS = "~hydra.sweeper.params.cell"


def without_cells(words: list[str]) -> list[str]:
    """The sweep's arguments. If they choose a model, the experiment's cells, which also choose models, are dropped."""
    values = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if "model" not in values or "experiment" not in values or {"cell", NO_CELLS} & values.keys():
        return words
    try:
        experiment = read_yaml(group_file("experiment", values["experiment"]))
    except InputError:  # several experiments, or an unknown one: Hydra reports it
        return words
    params = ((experiment.get("hydra") or {}).get("sweeper") or {}).get("params") or {}
    return [*words, NO_CELLS] if "cell" in params else words


def replicas(cfg: DictConfig, settings: Settings, folder: Path, words: list[str], hydra_text: str) -> list[Job]:
    """The runs of trainer.replicas=N: seeds seed ... seed + N - 1, each in the folder of a stand-alone run.

    If output_dir is set, they go to its subdirectories seedN.
    """
    from vaerun.launch.job import Job

    jobs, outputs = [], Path("outputs").absolute()
    words = [word for word in words if not word.lstrip("+").startswith(("seed=", "trainer.replicas="))]
    for seed in range(settings.seed, settings.seed + settings.trainer.replicas):
        single_cfg = copy.deepcopy(cfg)
        single_cfg.seed = seed
        run_dir = folder / f"seed{seed}" if cfg.output_dir is not None else outputs / short_name(_plain(single_cfg))
        single = replace(settings, seed=seed, trainer=replace(settings.trainer, replicas=1))
        jobs.append(Job(single, run_dir, [*words, f"seed={seed}"], hydra_text, label=f"seed {seed}"))
    return jobs
