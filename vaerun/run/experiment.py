"""One run, in order: prepare, lock, train, select, evaluate, write."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vaerun.config.identity import fingerprint
from vaerun.config.schema import DataSettings, Settings
from vaerun.data.dataset import ImageData
from vaerun.defaults import own_defaults
from vaerun.distributed.collectives import Ranks
from vaerun.distributed.process_group import check_noise, process_group
from vaerun.errors import InputError, RunError
from vaerun.memory import reporting_out_of_memory
from vaerun.objectives import Variational
from vaerun.run import result
from vaerun.run.build import build_data, resolve_device
from vaerun.run.closed_form import fit_closed_form
from vaerun.run.evaluate.write import EVALUATING, WRITING, prefixed_metrics, write_evaluation
from vaerun.run.family import Validate
from vaerun.run.preflight import check_step_options
from vaerun.run.prepare import prepare
from vaerun.run.recorder import Recorder, is_finished
from vaerun.signals import ShutdownSignal
from vaerun.storage.checkpoint import CheckpointManager, CorruptCheckpoint, load_checkpoint, load_from_other_run
from vaerun.storage.paths import expand_user
from vaerun.storage.run_dir import lock_run_dir, next_free_dir
from vaerun.tracking.monitor import Monitor
from vaerun.training import Hooks, Trainer, TrainState, make_optimisers, restore
from vaerun.training.determinism import reporting_nondeterminism, set_deterministic
from vaerun.training.step import global_state_lock, side_stream

RESUME = "lower the model's size, or run the same command again with more memory to resume"


@dataclass(frozen=True)
class SharedProcess:
    """Context of a run that shares its process with other runs, each in its own thread.

    Attributes:
        data: returns the data set for these settings on the device; equal settings share one object.
        ready: called once, before the first step; returns when all runs are ready.
        label: prefix of this run's warnings.
    """

    data: Callable[[DataSettings, torch.device], ImageData]
    ready: Callable[[], None]
    label: str


class Experiment:
    """One run, from its settings to its result.json.

    Arguments:
        settings: validated settings.
        folder: the run directory; may exist.
        overrides: command-line overrides, to be stored with the run.
        hydra: Hydra's own configuration as YAML, to be stored with the run.
        stop: shutdown signals.
        shared: set if the run shares its process with others.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        overrides: list[str],
        hydra: str | None = None,
        stop: ShutdownSignal | None = None,
        shared: SharedProcess | None = None,
    ) -> None:
        self.settings, self.folder, self.overrides, self.hydra = settings, folder, overrides, hydra
        self.stop, self.shared = stop or ShutdownSignal(), shared
        self.closed_form = settings.model.fit == "closed_form"
        self.generator: torch.Generator | None = None  # for batch noise; None: torch's global generator
        self.initial_checkpoint: dict[str, Any] | None = None  # the checkpoint named by trainer.resume=PATH
        self.started_from: dict[str, str] | None = None  # provenance of that checkpoint

    def run(self) -> dict[str, Any]:
        """Run or resume the experiment and return its record; if it has already finished, only print its results.

        Raises InputError, RunError or Interrupted (errors.py); they are recorded once the run directory is locked.
        """
        with self.guards(), self.stop, self.processes() as self.ranks:
            previous = self.prepare()
            if is_finished(previous):
                return self.recorder.show_finished(previous)
            with self.lock() as previous:
                if is_finished(previous):
                    return self.recorder.show_finished(previous)
                with self.stop.deferred(), self.open_logs(previous), side_stream(self.device):
                    state = self.train()
                    self.ranks.on_rank_zero(lambda: self.select(state))
                    self.ranks.on_rank_zero(lambda: self.evaluate(state))
                    self.ranks.barrier()
                    self.write()
                return self.recorder.record

    @contextmanager
    def guards(self) -> Iterator[None]:
        """Context of the whole run: torch's own defaults, and one line where memory runs out."""
        with own_defaults(), reporting_out_of_memory(RunError, "memory ran out: " + RESUME):
            yield

    def processes(self) -> AbstractContextManager[Ranks]:
        """Context that joins the process group of this run's trainer.processes processes."""
        trainer = self.settings.trainer
        return nullcontext(Ranks()) if trainer.processes == 1 else process_group(resolve_device(trainer.device).type)

    # -- prepare -----------------------------------------------------------------------------------------------------

    def prepare(self) -> dict[str, Any] | None:
        """Build and test all parts without writing anything; return the record of an earlier attempt, if any.

        A finished run builds nothing. Raises InputError for invalid settings.
        """
        with reporting_out_of_memory(InputError, "memory ran out before the run began: lower the model's size"):
            return self.build_parts()

    def build_parts(self) -> dict[str, Any] | None:
        """Load the data and build model, objective and checkpoints; see `prepare`."""
        trainer, shared = self.settings.trainer, self.shared
        set_deterministic(trainer.deterministic)
        self.device = self.ranks.device or resolve_device(trainer.device)
        check_step_options(trainer, self.device)
        # Validating arguments would synchronise with the GPU for each of them.
        torch.distributions.Distribution.set_default_validate_args(False)
        if trainer.resume == "never":
            self.folder = next_free_dir(self.folder)
        self.recorder = Recorder(self.folder, "" if shared is None else shared.label, silent=self.ranks.rank > 0)
        with global_state_lock:  # parameters are drawn from torch's global generator
            self.data = (build_data if shared is None else shared.data)(self.settings.data, self.device)
            self.fingerprint = fingerprint(asdict(self.settings), self.data.sha256)
            previous = self.ranks.on_rank_zero(self.check_existing_run)
            if is_finished(previous):
                return previous
            parts = prepare(self.settings, self.data, self.overrides)
            for line in parts.idle:
                self.recorder.warn(line)
            self.model, self.objective, self.family = parts.model, parts.objective, parts.family
            self.train_settings, self.plan = parts.train_settings, parts.plan
            self.checkpoints = CheckpointManager(self.folder / "checkpoints", self.fingerprint, self.recorder.warn)
            self.load_initial_checkpoint()
            if shared is not None:
                check_noise(self.objective, self.data.train, "several runs in a process", "run them one by one")
                self.generator = torch.Generator(self.device)
        return previous

    def check_existing_run(self) -> dict[str, Any] | None:
        """The record of an earlier attempt, if any. Raises InputError if the folder belongs to something else."""
        return result.check_existing_run(self.folder, self.fingerprint, self.settings, self.overrides)

    def load_initial_checkpoint(self) -> None:
        """Load the checkpoint named by trainer.resume=PATH. Raises InputError if training cannot continue from it."""
        if self.settings.trainer.resume in ("auto", "never") or self.checkpoints.has_checkpoint:
            return  # resume from this run's checkpoint instead; PATH may no longer exist
        if self.closed_form:
            raise InputError("trainer.resume=PATH: model.fit=closed_form does not train; set model.fit=gradient")
        path = expand_user(self.settings.trainer.resume)
        self.initial_checkpoint, self.started_from = load_from_other_run(path, self.device)
        optimisers = make_optimisers(self.objective.phases, self.train_settings)
        state = restore(self.objective, optimisers, self.initial_checkpoint, self.device)[0]
        if state.step >= self.plan.total_steps:
            raise InputError(
                f"trainer.resume: {path} has done {state.step} steps and this run has {self.plan.total_steps}: raise "
                "trainer.epochs (or trainer.max_steps)"
            )

    # -- lock --------------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[dict[str, Any] | None]:
        """Lock the run directory and yield the record of an earlier attempt, which may have ended since `prepare`.

        Called once all checks have passed, so that a rejected run leaves no directory behind.
        """
        with ExitStack() as stack:

            def lock_and_check() -> dict[str, Any] | None:
                stack.enter_context(lock_run_dir(self.folder))
                return self.check_existing_run()

            yield self.ranks.on_rank_zero(lock_and_check)

    @contextmanager
    def open_logs(self, previous: dict[str, Any] | None) -> Iterator[None]:
        """Open the run's logs, and keep the status in result.json up to date even if an error is raised."""
        settings, overrides = self.settings, self.overrides
        record = result.new_record(
            settings, self.data, self.device, self.fingerprint, overrides, self.started_from, self.model
        )
        last = self.checkpoints.load_last(self.device)
        if last is not None and previous is not None:
            result.keep_provenance(record, previous)
        self.checkpoint = last or self.initial_checkpoint
        with (
            self.recorder.track_status(record, settings, overrides, self.hydra),
            reporting_out_of_memory(RunError, "memory ran out: " + RESUME),  # for the record
            self.recorder.open_logger(self.plan, self.checkpoint),
            reporting_nondeterminism(RunError),
        ):
            self.recorder.report_data(self.data)  # here, since a run that is rejected ends in one line
            yield

    # -- train -------------------------------------------------------------------------------------------------------

    def train(self) -> TrainState:
        """Train the model, or fit it in closed form, and return the final state."""
        with self.training_memory():
            return self.fit() if self.closed_form else self.make_trainer().train()

    @contextmanager
    def training_memory(self) -> Iterator[None]:
        """Context in which memory that runs out names the settings to lower."""
        samples, sizes = self.settings.estimator.samples, f"trainer.batch_size={self.settings.trainer.batch_size}"
        lower = f"{sizes} and estimator.samples={samples}: lower them" if samples > 1 else f"{sizes}: lower it"
        with reporting_out_of_memory(RunError, f"memory ran out in training with {lower}, or the model's size"):
            yield

    def make_trainer(self) -> Trainer:
        """Create the trainer, restored from the checkpoint."""
        return Trainer(
            self.objective,
            self.data.train,
            self.train_settings,
            self.plan,
            hooks=self.hooks() if self.ranks.rank == 0 else None,
            logger=self.recorder.logger,
            checkpoints=self.checkpoints,
            stop=self.stop,
            ranks=self.ranks,
            generator=self.generator,
            checkpoint=self.checkpoint,
        )

    def hooks(self) -> Hooks:
        """The trainer's callbacks."""
        pictures_every = self.settings.evaluation.pictures  # number of validations between pictures
        steps_between = self.plan.steps_per_epoch * self.settings.evaluation.every
        protocol = self.recorder.record["protocol"]

        def pictures_if_due(step: int) -> None:
            # Derive the number of the validation from the step, so that a resumed run draws the same pictures.
            if pictures_every and (math.ceil(step / steps_between) - 1) % pictures_every == 0:
                self.log_pictures(step)

        validate = self.validator()
        if validate is not None and validate.selection is not None:
            protocol["selection"] = f"best {validate.selection}"
            result.set_selection_space(self.recorder.record, getattr(validate, "feature_space", None))
        return Hooks(
            validate=validate,
            selection=None if validate is None else validate.selection,
            warn=self.recorder.warn,
            on_validation_end=pictures_if_due,
            on_ready=(lambda: None) if self.shared is None else self.shared.ready,
            on_precision_compared=lambda differences: protocol.update(precision_difference=differences),
        )

    def validator(self) -> Validate | None:
        """The callable that computes validation metrics; None without a validation split."""
        return self.family.validator(self.settings, self.objective, self.data, Monitor(self.stop, self.recorder.warn))

    def fit(self) -> TrainState:
        """Fit the model in closed form instead of training it."""
        if self.ranks.rank:
            return TrainState(finished=True)  # rank 0 fits the model
        assert isinstance(self.objective, Variational)
        return fit_closed_form(
            self.objective,
            self.data.train,
            validate=self.validator(),
            logger=self.recorder.logger,
            checkpoints=self.checkpoints,
            warn=self.recorder.warn,
        )

    # -- select, evaluate, write -------------------------------------------------------------------------------------

    def select(self, state: TrainState) -> None:
        """Load the best parameters."""
        folder, record = self.checkpoints.folder, self.recorder.record
        try:
            best = load_checkpoint(folder / "best.pt", self.device)
        except CorruptCheckpoint as damage:
            remedy = f"remove {folder} and run the same command to train again"
            raise RunError(f"cannot read {folder / 'best.pt'}: {damage}; {remedy}") from damage
        self.objective.load_state_dict(best["objective"])
        self.objective.train(False)
        record["protocol"]["selected_epoch"] = round(state.best_epoch, 6)
        if state.best is not None:
            selection = best.get("selection", "val/elbo")
            record["metrics"][selection] = state.best
            if selection in ("val/iwae", "val/renyi") and (validate := self.validator()) is not None:
                record["metrics"]["val/elbo"] = validate()["val/elbo"]  # ELBO of the selected parameters
        record["timing"] = state.timing(self.plan.images_per_step)

    def evaluate(self, state: TrainState) -> None:
        """Evaluate the selected parameters."""
        settings, record, started = self.settings.evaluation, self.recorder.record, time.perf_counter()
        with reporting_out_of_memory(RunError, EVALUATING):
            evaluation = self.family.evaluate(settings, self.model, self.data, seed=self.settings.seed, stop=self.stop)
        record["metrics"] |= prefixed_metrics(evaluation, settings.split)
        record["details"] = evaluation.details
        record["timing"]["evaluation_seconds"] = round(time.perf_counter() - started, 3)
        for line in evaluation.warnings:
            self.recorder.warn(line)
        if evaluation.non_finite_metric:
            metric = f"{settings.split}/{evaluation.non_finite_metric}"
            raise RunError(f"{metric} is not finite for some images: the parameters have diverged")
        epoch = state.step / self.plan.steps_per_epoch
        with reporting_out_of_memory(RunError, WRITING):
            write_evaluation(self.folder, evaluation, settings.split, self.recorder.logger, state.step, epoch)
        self.log_pictures(state.step)
        self.texts = evaluation.texts

    def log_pictures(self, step: int) -> None:
        """Log pictures of the model with its current parameters."""
        training = self.objective.training
        self.objective.train(False)
        split = self.data.validation if len(self.data.validation) else self.data.train
        with reporting_out_of_memory(RunError, "memory ran out while drawing pictures: " + RESUME):
            self.recorder.write_pictures(self.family.pictures(self.model, split), step)
        self.objective.train(training)

    def write(self) -> None:
        """Record and print the results."""
        if self.ranks.rank == 0:
            self.recorder.finish(self.settings, self.overrides, self.texts)
