"""The command `vaerun`: composes the configuration with Hydra, then executes a run or a sweep.

Exit codes: 0 done; 1 a run failed; 2 bad input; 130 interrupted; 75 stopped by another signal after saving.
Heavy imports, such as torch, are deferred until a run starts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vaerun.cli.console import reporting_errors
from vaerun.cli.help import help_text
from vaerun.cli.output_dir import OutputDir
from vaerun.deprecation import silence_torch_warnings
from vaerun.errors import Interrupted, RunError
from vaerun.signals import ShutdownSignal, interrupt_on_signal
from vaerun.text import print_output, printable

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Entry point: run the command and exit with its code."""
    command = Command(sys.argv[1:])
    with reporting_errors("vaerun", command.output_dir.remove_empty) as outcome:
        if {"-h", "--help"} & set(command.words):
            print_output(help_text())
        elif "--version" in command.words:
            from importlib.metadata import version

            print_output(f"vaerun {version('vaerun')}")
        elif {"-m", "--multirun"} & set(command.words):
            command.spell_out_switches()
            outcome.exit_code = command.sweep()
        else:
            from vaerun.cli.compose import hydra_application, readable_errors, watching_run_dir
            from vaerun.config.composing import composing

            command.spell_out_switches()
            with readable_errors(command.words, command.output_dir):
                application = hydra_application(command.run, command.words, command.output_dir)
                with composing(), watching_run_dir(command.output_dir):
                    application()
            if command.failure is not None:
                raise command.failure
    if outcome.exit_code:
        sys.exit(outcome.exit_code)


class Command:
    """One invocation of `vaerun`.

    Attributes:
        words: flags and overrides from the command line, in the order that Hydra expects.
        check_only: only print what would run (--check).
        output_dir: the folder of the run or sweep.
        failure: exception of a single run, which `main` raises: raised through Hydra, it would be wrapped in Hydra's
            output.
    """

    def __init__(self, words: list[str]) -> None:
        # Hydra's parser rejects flags between overrides.
        self.words = sorted((w for w in words if w != "--check"), key=lambda w: w not in ("-m", "--multirun"))
        self.check_only = "--check" in words
        self.output_dir = OutputDir()
        self.failure: Exception | None = None

    def spell_out_switches(self) -> None:
        """Write evaluation.amis=true as evaluation.amis.enabled=true. Raises InputError for contradictions."""
        from vaerun.config.overrides import spell_out_switches

        self.words = spell_out_switches(self.words)

    def run(self, cfg: DictConfig) -> None:
        """Run or check the composed configuration; Hydra's task function for a single run."""
        from vaerun.config.settings import to_settings

        folder, overrides, hydra = _hydra_job()
        silence_torch_warnings()
        try:
            settings = to_settings(cfg)
            _warn_of_idle(overrides)
            if self.check_only:
                from vaerun.sweep.summary import check_single

                print_output(check_single(settings, folder, overrides))
            elif settings.trainer.processes > 1:
                from vaerun.launch.supervise import run_multiprocess

                run_multiprocess(settings, folder, overrides, hydra)
            elif settings.trainer.replicas > 1:
                from vaerun.cli.compose import replicas
                from vaerun.launch.replicas import run_replicas

                run_replicas(replicas(cfg, settings, folder, overrides, hydra))
            else:
                from vaerun.run.experiment import Experiment

                # Until the run has begun, a signal simply ends the process.
                stop = ShutdownSignal(on_immediate=interrupt_on_signal("vaerun", self.output_dir.remove_empty))
                Experiment(settings, folder, overrides, hydra, stop).run()
        except Exception as error:
            self.failure = error
        finally:
            self.output_dir.remove_empty()

    def sweep(self) -> int:
        """Run or check one job per combination of override values, and return the exit code."""
        from vaerun.cli.compose import hydra_application, readable_errors, without_cells
        from vaerun.config.composing import CompositionError, composing

        silence_torch_warnings()
        from vaerun.sweep.launcher import patched_launcher

        with (
            readable_errors(self.words, self.output_dir),
            patched_launcher(["vaerun", *self.words], self.check_only) as sweep,
        ):
            application = hydra_application(job, without_cells(self.words), self.output_dir)
            try:
                with composing():
                    application()
            except CompositionError as error:
                bug = sweep.failure  # raised by vaerun's code inside Hydra's sweeper
                if bug is None or bug is error:
                    raise
                raise bug from bug.__cause__
            except (Interrupted, RunError):
                sweep.finish()
                raise
            code = sweep.finish()
        sys.stdout.flush()
        return code


def _warn_of_idle(overrides: list[str]) -> None:
    """Warn of settings of sweeps, which a single run does not have."""
    from vaerun.config.overrides import idle_in_single_run

    for line in idle_in_single_run(overrides):
        print_output(f"vaerun: warning: {printable(line)}", sys.stderr)


def job(cfg: DictConfig) -> float | None:
    """Run a job of a sweep that was started by another launcher (Slurm, Ray), in a process that imports this function.

    Returns the validation metric for sweepers that optimise it.
    """
    from vaerun.config.settings import to_settings

    silence_torch_warnings()
    from vaerun.sweep.remote import run_job

    return run_job(to_settings(cfg), *_hydra_job())


def _hydra_job() -> tuple[Path, list[str], str]:
    """The folder and overrides of Hydra's current job, and Hydra's own configuration as YAML."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    hydra = HydraConfig.get()
    text = OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra}))
    return Path(hydra.runtime.output_dir), list(hydra.overrides.task), text


if __name__ == "__main__":
    main()
