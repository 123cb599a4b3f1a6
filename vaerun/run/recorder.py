"""Records a run in its directory: result.json, run.log, metrics.jsonl, figures and TensorBoard files."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from vaerun.config.schema import Settings
from vaerun.data.dataset import ImageData
from vaerun.data.description import data_line
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation.plots.pictures import save_png
from vaerun.run import result
from vaerun.run.hyperparameters import hyperparameters
from vaerun.run.image_ids import write_image_ids
from vaerun.storage.atomic import write_atomically
from vaerun.text import print_output, printable
from vaerun.tracking.logger import NullLogger, RunLogger, RunLogHandler
from vaerun.training import TrainPlan


def is_finished(record: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether this is the record of a finished run."""
    return record is not None and record["status"] == "ok"


class Recorder:
    """Records one run.

    Arguments:
        folder: the run directory; created when it is locked.
        label: prefix of warnings if several runs share standard error.
        silent: write and print nothing, because another rank records the run.

    Attributes:
        record: contents of result.json.
        logger: logs metrics and pictures; open inside `logging`.
    """

    def __init__(self, folder: Path, label: str = "", silent: bool = False) -> None:
        self.folder, self.label, self.silent = folder, label, silent
        self.record: dict[str, Any] = {}
        self.logger: RunLogger | NullLogger = NullLogger()
        # Not in the logger hierarchy, so that no other handler receives its records.
        self.run_log = logging.Logger("vaerun.run", logging.INFO)
        self._early_warnings: list[str] = []  # run.log is only opened once the run has passed all checks

    def warn(self, line: str) -> None:
        """Print a one-line warning on standard error, and write it to run.log."""
        if self.silent:
            return
        print_output(f"vaerun: warning: {self.label}{printable(line)}", sys.stderr)
        if self.run_log.handlers:
            self.run_log.warning(line)
        else:
            self._early_warnings.append(line)

    def report_data(self, data: ImageData) -> None:
        """Say what was read of the data set and what is probably wrong with it, and keep which image is which."""
        if self.silent:
            return
        write_image_ids(self.folder, data)
        line = data_line(data.name, self.record["dataset"])
        print_output(f"vaerun: {self.label}{printable(line)}", sys.stderr)
        self.run_log.info("%s", line)
        for warning in data.warnings:
            self.warn(warning)

    def show_finished(self, record: dict[str, Any]) -> dict[str, Any]:
        """Print and return the record of a run that has already finished."""
        if not self.silent:
            print_output(f"already finished: {self.folder}\n{result.format_table(record, self.folder)}")
        return record

    @contextmanager
    def track_status(
        self, record: dict[str, Any], settings: Settings, overrides: list[str], hydra: str | None
    ) -> Iterator[None]:
        """Keep the status in result.json and run.log up to date: running, or the error that ended the block.

        Arguments:
            record: initial record of the run.
            settings, overrides, hydra: for .hydra/.
        """
        self.record = record
        if self.silent:
            yield
            return
        result.write_result(self.folder, record)
        handler = RunLogHandler(self.folder / "run.log")
        self.run_log.addHandler(handler)
        try:
            result.write_config(self.folder, asdict(settings), overrides, hydra)
            self.run_log.info("start: %s", " ".join(["vaerun", *overrides]))
            for line in self._early_warnings:
                self.run_log.warning(line)
            yield
        except BaseException as error:
            self._record_failure(error)
            raise
        finally:
            self.run_log.removeHandler(handler)
            handler.close()

    def _record_failure(self, error: BaseException) -> None:
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        self.record |= {"status": "interrupted" if interrupted else "failed", "error": str(error) or repr(error)}
        self.record["ended"] = result.utc_now()
        expected = interrupted or isinstance(error, InputError | RunError)
        with suppress(RunError, MemoryError):  # a full disk may be the cause: report the original error
            self.run_log.error("%s", self.record["error"] if expected else traceback.format_exc())
        with suppress(RunError, MemoryError):
            result.write_result(self.folder, self.record)

    @contextmanager
    def open_logger(self, plan: TrainPlan, checkpoint: dict[str, Any] | None) -> Iterator[None]:
        """Open metrics.jsonl and TensorBoard files, truncated to the position in the checkpoint; None: start anew.

        Raises RunError if writing to the folder fails inside the block.
        """
        if self.silent:
            yield
            return
        try:
            self.logger = RunLogger(
                self.folder,
                position=None if checkpoint is None else checkpoint["log"],
                start_step=0 if checkpoint is None else checkpoint["progress"].get("step", 0),
                total_steps=plan.total_steps,
                images_per_step=plan.images_per_step,
            )
            yield
        except OSError as error:  # the folder was removed, or the disk is full
            raise RunError(f"cannot write into {self.folder}: {error}; run the same command again to resume") from error
        finally:
            self.logger.close()

    def write_pictures(self, pictures: dict[str, Tensor], step: int) -> None:
        """Write named pictures [C, H, W] to TensorBoard and figures/."""
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, picture in pictures.items():
            self.logger.log_image(f"images/{name}", picture, step)
            write_atomically(self.folder / "figures" / f"{name}.png", save_png(picture))

    def finish(self, settings: Settings, overrides: list[str], texts: list[str]) -> None:
        """Record the results and print them, preceded by these texts."""
        self.logger.log_hyperparameters(hyperparameters(settings, overrides))
        self.record |= {"status": "ok", "ended": result.utc_now()}
        text = "\n".join([*texts, result.format_table(self.record, self.folder)])
        self.run_log.info("done\n%s", text)
        result.write_result(self.folder, self.record)
        print_output(text)
