"""The command `vaerun`: Hydra composes the configuration; help, errors and exit codes are vaerun's own.

Exit codes: 0 done; 1 a run failed; 2 bad input; 130 interrupted; 75 stopped by SIGTERM or SIGUSR1 after saving.
Nothing heavy is imported before a run really starts.
"""

from __future__ import annotations

import contextlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vaerun.cli.help import help_text
from vaerun.cli.show import show
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.signals import exit_on_signal, handling_signals, interrupt_on_signal
from vaerun.text import printable

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Entry point."""
    with handling_signals(exit_on_signal("vaerun", _tidy)):
        _main()


def _tidy() -> None:
    """Hydra makes the run's folder early: a command that is stopped before it has begun leaves none that is empty."""
    composing = sys.modules.get("vaerun.cli.compose")
    for place in sorted(getattr(composing, "absent", ()), reverse=True):
        with suppress(OSError):  # not empty, or not there
            place.rmdir()


def _main() -> None:
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        try:
            show(help_text())
        except InputError as error:
            _leave(2, error)
        return
    if "--version" in arguments:
        from importlib.metadata import version

        print(f"vaerun {version('vaerun')}")
        return
    from vaerun.cli.compose import explain, run_hydra

    global _check_only
    _check_only = "--check" in arguments
    # Hydra's parser takes no flag between the words.
    arguments = sorted((a for a in arguments if a != "--check"), key=lambda a: a not in ("-m", "--multirun"))
    sys.argv = [sys.argv[0], *arguments]
    try:
        if "-m" in arguments or "--multirun" in arguments:
            _sweep(arguments)
        else:
            run_hydra(job, arguments)
        if _failure is not None:
            raise _failure
    except InputError as error:
        _leave(2, error)
    except RunError as error:
        _leave(1, error)
    except Interrupted as error:
        _leave(error.exit_code, error)
    except KeyboardInterrupt:
        _leave(130, "interrupted")
    except Exception as error:
        line = explain(error, arguments)
        if line is None:
            raise  # a bug of ours: with its traceback
        _remove_made()
        _leave(2, line)


def _sweep(arguments: list[str]) -> None:
    from vaerun.cli.compose import run_hydra, without_cells
    from vaerun.launch.worker import silence_torch_warnings

    silence_torch_warnings()
    from vaerun.sweep.launcher import patched_launcher

    sys.argv = [sys.argv[0], *without_cells(arguments)]
    with patched_launcher(["vaerun", *arguments], _check_only) as sweep:
        try:
            run_hydra(job, sys.argv[1:])
        except (Interrupted, RunError):
            sweep.end()
            raise
        code = sweep.end()
    sys.stdout.flush()
    if code:
        sys.exit(code)


def _leave(code: int, why: object) -> None:
    if not getattr(why, "reported", False):
        print(f"vaerun: {'error: ' if code in (1, 2) else ''}{printable(why)}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)


_failure: BaseException | None = None  # of a single run: raised through Hydra it would come with lines of Hydra's own
_check_only = False


def job(cfg: DictConfig) -> float | None:
    """One run of Hydra's; returns the validation metric for optimising sweepers.

    A sweep's jobs come here where another launcher than vaerun's own runs them, in processes of its own.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from vaerun.config.settings import check
    from vaerun.launch.worker import silence_torch_warnings

    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    text = OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra}))
    silence_torch_warnings()
    if hydra.mode == RunMode.MULTIRUN:
        from vaerun.sweep.remote import run_job

        return run_job(check(cfg), folder, overrides, text)
    try:
        settings = check(cfg)
        if _check_only:
            from vaerun.sweep.summary import check_single

            print(check_single(settings, folder, overrides))
        elif settings.trainer.processes > 1:
            from vaerun.launch.supervise import run_multiprocess

            run_multiprocess(settings, folder, overrides, text)
        elif settings.trainer.replicas > 1:
            from vaerun.cli.compose import replicas
            from vaerun.launch.replicas import run_replicas

            run_replicas(replicas(cfg, settings, folder, overrides, text))
        else:
            from vaerun.run.execute import execute
            from vaerun.signals import ShutdownSignal

            # Until the run records that it has begun a signal means: leave.
            execute(settings, folder, overrides, text, ShutdownSignal(outside=interrupt_on_signal("vaerun", _tidy)))
    except Exception as error:
        global _failure
        _failure = error
    finally:
        _remove_if_empty(folder)
    return None


def _remove_if_empty(folder: Path) -> None:
    """Hydra makes the folder before a run is checked: one that was refused leaves nothing that was not there before."""
    from vaerun.cli.compose import absent

    for place in (folder, *folder.parents):
        if place not in absent:
            return
        try:
            place.rmdir()
        except OSError:  # not empty, or not there
            return


def _remove_made() -> None:
    """The same where making the run's folder failed half-way."""
    from vaerun.cli.compose import absent

    for place in sorted(absent, key=lambda place: -len(place.parts)):
        with contextlib.suppress(OSError):  # not empty, or not there
            place.rmdir()


if __name__ == "__main__":
    main()
