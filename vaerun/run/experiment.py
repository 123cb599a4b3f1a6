"""What happens in one run, in order: training, selection, evaluation, records."""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vaerun.config.settings import Settings
from vaerun.distributed.collectives import Ranks, Silent
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation.oom import not_in_parts, running_out
from vaerun.evaluation.plots.pictures import save_png
from vaerun.models import ppca
from vaerun.objectives import Variational
from vaerun.run import result as records
from vaerun.run.build import train_settings
from vaerun.run.evaluate.write import keep, named
from vaerun.run.family import Validate, family_of
from vaerun.run.prepare import Prepared
from vaerun.signals import ShutdownSignal
from vaerun.storage.atomic import write_atomically
from vaerun.storage.checkpoint import CheckpointManager, CorruptCheckpoint, load, load_from_other_run
from vaerun.storage.paths import expand_user
from vaerun.text import printable
from vaerun.tracking.logger import RunLogger, RunLogHandler
from vaerun.tracking.monitor import Monitor
from vaerun.training import TrainState, make_optimisers, restore, train
from vaerun.training.determinism import named_operations
from vaerun.training.step import side_stream


class Course:
    """The parts of one run and what is done with them, in order."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        stop: ShutdownSignal,
        device: torch.device,
        parts: Prepared,
        ranks: Ranks,
    ) -> None:
        self.settings, self.folder, self.stop, self.device, self.ranks = settings, folder, stop, device, ranks
        self.data, self.model, self.objective, self.identity = parts.data, parts.model, parts.objective, parts.identity
        self.source: torch.Generator | None = None
        self.ready: Callable[[], None] | None = None
        self.label = ""
        self.family = family_of(self.model)
        self.store = CheckpointManager(folder / "checkpoints", self.identity, self.warn)
        self.train_settings, self.total_steps = train_settings(settings), parts.total_steps
        # The last batch of an epoch may be smaller: what a step covers on average.
        self.steps_per_epoch = math.ceil(len(self.data.train) / settings.trainer.batch_size)
        self.images_per_step = len(self.data.train) / self.steps_per_epoch
        self.logger = logging.Logger("vaerun.run", logging.INFO)  # this run's own: no other handler sees it
        self.warnings: list[str] = []
        self.record: dict[str, Any] = {}
        self.texts: list[str] = []
        self.named: dict[str, Any] | None = None
        self.started_from: dict[str, str] | None = None

    def join(self, source: torch.Generator, ready: Callable[[], None], label: str) -> None:
        """Other runs train in this process (execute.Company): noise comes from a generator of this one's own."""
        self.source, self.ready, self.label = source, ready, label

    def warn(self, line: str) -> None:
        """One line on standard error and in run.log."""
        if self.ranks.rank:
            return
        print(f"vaerun: warning: {self.label}{printable(line)}", file=sys.stderr)
        if self.logger.handlers:
            self.logger.warning(line)
        else:
            self.warnings.append(line)  # run.log is opened once the run can no longer be refused

    def follow(self) -> None:
        """Train and wait as a process that is not the first, which records it all."""
        state = self.store.load_last(self.device) or self.named
        with self.stop.deferred():
            if self.settings.model.fit != "closed_form":
                train(
                    self.objective,
                    self.data.train,
                    self.train_settings,
                    validate=None,
                    log=Silent(),
                    store=Silent(),
                    stop=self.stop,
                    resume=state,
                    ranks=self.ranks,
                )
            self.ranks.on_rank_zero(None)  # selection and evaluation
            self.ranks.barrier()

    def recorded(self, before: dict[str, Any] | None, overrides: list[str], hydra: str | None) -> dict[str, Any]:
        """Train and evaluate, with the status in result.json at every moment; `before`: what it said until now."""
        with self.stop.deferred():  # whatever comes from now on is recorded
            return self._recorded(before, overrides, hydra)

    def _recorded(self, before: dict[str, Any] | None, overrides: list[str], hydra: str | None) -> dict[str, Any]:
        self.record = records.start(
            self.settings, self.data, self.device, self.identity, overrides, self.started_from, self.model
        )
        own = self.store.load_last(self.device)
        if own is not None and before is not None:
            records.keep_provenance(self.record, before)
        records.write_result(self.folder, self.record)
        handler = RunLogHandler(self.folder / "run.log")
        self.logger.addHandler(handler)
        try:
            records.write_config(self.folder, asdict(self.settings), overrides, hydra)
            self.logger.info("start: %s", " ".join(["vaerun", *overrides]))
            for line in self.warnings:
                self.logger.warning(line)
            self._train_and_evaluate(own or self.named)
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            self.record |= {"status": "interrupted" if stopped else "failed", "error": str(error) or repr(error)}
            self.record["ended"] = records.now()
            known = isinstance(error, InputError | RunError | Interrupted | KeyboardInterrupt)
            with suppress(RunError):  # the disk that is full may be why the run failed: that is what is told
                self.logger.error("%s", self.record["error"] if known else traceback.format_exc())
            with suppress(RunError):
                records.write_result(self.folder, self.record)
            raise
        finally:
            self.logger.removeHandler(handler)
            handler.close()
        return self.record

    def start_from_named(self) -> None:
        """Read the checkpoint of trainer.resume=PATH. Raises InputError where it cannot be gone on from."""
        if self.settings.trainer.resume in ("auto", "never"):
            return
        if self.store.has_checkpoint:
            return  # this run has begun: it goes on from its own, and the other's may be gone
        if self.settings.model.fit == "closed_form":
            raise InputError("trainer.resume=PATH: model.fit=closed_form does not train; set model.fit=gradient")
        path = expand_user(self.settings.trainer.resume)
        self.named, self.started_from = load_from_other_run(path, self.device)
        optimisers = make_optimisers(self.objective.phases, self.train_settings)
        done = restore(self.objective, optimisers, self.named, self.device)[0]
        if done.step >= self.total_steps:
            raise InputError(
                f"trainer.resume: {path} has done {done.step} steps and this run has {self.total_steps}: raise "
                "trainer.epochs (or trainer.max_steps)"
            )

    def _train_and_evaluate(self, state: dict[str, Any] | None) -> None:
        start = state["progress"].get("step", 0) if state is not None else 0  # one that is none is refused below
        log = RunLogger(
            self.folder,
            position=state["log"] if state is not None else None,
            start_step=start,
            total_steps=self.total_steps,
            images_per_step=self.images_per_step,
        )
        try:
            with named_operations(RunError), self.stop.deferred(), side_stream(self.device):
                closed_form = self.settings.model.fit == "closed_form"
                done = self._fit_closed_form(log) if closed_form else self._train(log, state)
                self.ranks.on_rank_zero(lambda: self._select_and_evaluate(log, done))
                self.ranks.barrier()
                self._finish(log, done)
        except OSError as error:  # the folder has gone, the disk is full: not to be met by any check beforehand
            raise RunError(f"cannot write into {self.folder}: {error}; run the same command again to go on") from error
        finally:
            log.close()

    # -- training -----------------------------------------------------------------------------------------------

    def _validator(self) -> Validate | None:
        return self.family.validator(self.settings, self.objective, self.data, Monitor(self.stop, self.warn))

    def _train(self, log: RunLogger, state: dict[str, Any] | None) -> TrainState:
        every = self.settings.evaluation.pictures
        steps_between = self.steps_per_epoch * self.settings.evaluation.every

        def after_validation(step: int) -> None:
            # The validation's number follows from the step, so that a resumed run has the same pictures.
            if every and (math.ceil(step / steps_between) - 1) % every == 0:
                self._pictures(log, step)

        validate = self._validator()
        if validate is not None and validate.selection is not None:
            self.record["protocol"]["selection"] = f"best {validate.selection}"
            records.keep_space(self.record, getattr(validate, "space", None))
        tried = [f"trainer.batch_size={self.settings.trainer.batch_size}"]
        if self.settings.estimator.samples > 1:
            tried.append(f"estimator.samples={self.settings.estimator.samples}")
        what = f"{' and '.join(tried)}: lower {'them' if len(tried) > 1 else 'it'}, or the model's size"
        with running_out(RunError, f"memory ran out in training with {what}"):
            return train(
                self.objective,
                self.data.train,
                self.train_settings,
                validate=validate,
                selection=validate.selection if validate is not None else None,
                warn=self.warn,
                after_validation=after_validation,
                log=log,
                store=self.store,
                stop=self.stop,
                resume=state,
                ranks=self.ranks,
                source=self.source,
                ready=self.ready,
                compared=lambda found: self.record["protocol"].update(precision_difference=found),
            )

    def _fit_closed_form(self, log: RunLogger) -> TrainState:
        started = time.perf_counter()
        assert isinstance(self.objective, Variational)
        ppca.fit_closed_form(self.objective.model, (b.x for b in self.data.train.batches(4096)))
        if ppca.variance_at_minimum(self.objective.model):
            self.warn(
                f"the training images fill no more than model.latent_dim={self.settings.model.latent_dim} dimensions: "
                f"their likelihood has no upper bound, and is given at the variance {ppca.MINIMUM_VARIANCE:g}"
            )
        self.objective.train(False)
        validate = self._validator()
        seconds = time.perf_counter() - started
        found = validate() if validate is not None else {}
        if found:
            log.record(0, 0.0, found)
        selection = (validate.selection or "") if validate is not None else ""
        self.store.save_best({"objective": self.objective.state_dict(), "epoch": 0.0, "selection": selection})
        return TrainState(best=found.get(selection), finished=True, seconds=seconds)

    def _select_and_evaluate(self, log: RunLogger, done: TrainState) -> None:
        self._select(done)
        self._evaluate(log, done)

    def _select(self, done: TrainState) -> None:
        path = self.store.folder / "best.pt"
        try:
            state = load(path, self.device)
        except CorruptCheckpoint as damage:
            raise RunError(
                f"cannot read {path}: {damage}; remove {self.store.folder} and run the same command to train again"
            ) from damage
        self.objective.load_state_dict(state["objective"])
        self.objective.train(False)
        self.record["protocol"]["selected_epoch"] = round(done.best_epoch, 6)
        if done.best is not None:
            selection = state.get("selection", "val/elbo")
            self.record["metrics"][selection] = done.best
            if selection in ("val/iwae", "val/renyi") and (validate := self._validator()) is not None:
                self.record["metrics"]["val/elbo"] = validate()["val/elbo"]  # of the parameters that were selected
        speed = done.timed_steps / done.timed_seconds if done.timed_seconds else None
        self.record["timing"] = {
            "train_seconds": round(done.seconds, 3),
            "train_steps": done.step,
            "steps_per_second": speed,
            "images_per_second": speed * self.images_per_step if speed else None,
        }

    # -- evaluation ---------------------------------------------------------------------------------------------

    def _evaluate(self, log: RunLogger, done: TrainState) -> None:
        e, started = self.settings.evaluation, time.perf_counter()
        with not_in_parts():
            found = self.family.evaluate(e, self.model, self.data, seed=self.settings.seed, stop=self.stop)
        self.record["metrics"] |= named(found, e.split)
        self.record["details"] = found.details
        self.record["timing"]["evaluation_seconds"] = round(time.perf_counter() - started, 3)
        for line in found.warnings:
            self.warn(line)
        if found.diverged:
            raise RunError(f"{e.split}/{found.diverged} is not finite for some images: the parameters have diverged")
        keep(self.folder, found, e.split, log, done.step, done.step / self.steps_per_epoch)
        self._pictures(log, done.step)
        self.texts = found.texts

    def _pictures(self, log: RunLogger, step: int) -> None:
        training = self.objective.training
        self.objective.train(False)
        split = self.data.validation if len(self.data.validation) else self.data.train
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, picture in self.family.pictures(self.model, split).items():
            log.image(f"images/{name}", picture, step)
            write_atomically(self.folder / "figures" / f"{name}.png", save_png(picture))
        self.objective.train(training)

    def _finish(self, log: RunLogger, done: TrainState) -> None:
        columns = records.columns(self.record["metrics"], self.settings.evaluation.split)
        log.hyperparameters(records.hyperparameters(self.settings), columns)
        self.record |= {"status": "ok", "ended": records.now()}
        text = "\n".join([*self.texts, records.table(self.record, self.folder)])
        self.logger.info("done\n%s", text)
        records.write_result(self.folder, self.record)
        records.tell(text)
