"""One run: data, model, training, evaluation, records; the same command goes on where it stopped."""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vaerun.data.dataset import ImageData
from vaerun.errors import InputError, Interrupted, RunError
from vaerun.evaluation import Validator
from vaerun.evaluation.pictures import pictures, save_png
from vaerun.files import write_atomically
from vaerun.models import LatentModel, ppca
from vaerun.objectives import Variational
from vaerun.randomness import mix
from vaerun.run import record as records
from vaerun.run.build import build_data, build_model, build_objective, device_named, try_out
from vaerun.run.evaluate import evaluate_test
from vaerun.run.folder import claim, fresh
from vaerun.settings import Settings, fingerprint
from vaerun.training import Progress, TrainSettings, make_optimisers, restore, train
from vaerun.training.checkpoint import Store, load_named
from vaerun.training.log import Log
from vaerun.training.signals import Stop

EVALUATION_BATCH = 500  # images per validation batch; no result depends on it beyond rounding


def execute(settings: Settings, folder: Path, overrides: list[str], hydra: str | None = None) -> dict[str, Any]:
    """Run what the settings say in this folder and return the record of result.json.

    Arguments:
        settings: checked.
        folder: the run directory; may exist.
        overrides: the command's words, for the record.
        hydra: Hydra's own configuration as yaml, for the record.

    Raises InputError, RunError, Interrupted (errors.py); whatever is raised after the run has begun is in result.json.
    """
    plain = asdict(settings)
    with Stop() as stop:
        device = device_named(settings.trainer.device)
        torch.use_deterministic_algorithms(settings.trainer.deterministic)
        torch.distributions.Distribution.set_default_validate_args(False)  # a host sync per argument on a GPU
        if settings.trainer.resume == "never":
            folder = fresh(folder)
        with claim(folder):
            data = build_data(settings.data, device)
            identity = fingerprint(plain, data.sha256)
            before = records.read_result(folder)
            if before is not None and before["fingerprint"] != identity:
                raise InputError(
                    f"{folder} holds a run of another configuration or other data: choose another output_dir, or "
                    "trainer.resume=never for a folder of its own"
                )
            if before is None and any(not p.name.startswith(".") for p in folder.iterdir()):
                raise InputError(f"{folder} is not empty and holds no run of vaerun's: choose another output_dir")
            if before is not None and before["status"] == "ok":
                print(f"finished before: {folder}\n{records.table(before, folder)}")
                return before

            torch.manual_seed(mix(settings.seed, "initialisation"))
            model = build_model(settings.model, data)
            objective = build_objective(settings, model)
            try_out(settings.model, objective, data)
            run = _Run(settings, folder, stop, device, data, model, objective, identity)
            return run.recorded(overrides, plain, hydra)


class _Run:
    """The parts of one run and what is done with them, in order."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        stop: Stop,
        device: torch.device,
        data: ImageData,
        model: LatentModel,
        objective: Variational,
        identity: str,
    ) -> None:
        self.settings, self.folder, self.stop, self.device = settings, folder, stop, device
        self.data, self.model, self.objective, self.identity = data, model, objective, identity
        self.store = Store(folder / "checkpoints", identity, self.warn)
        t = settings.trainer
        self.train_settings = TrainSettings(
            seed=settings.seed,
            epochs=t.epochs,
            batch_size=t.batch_size,
            learning_rate=t.learning_rate,
            max_steps=t.max_steps,
            variance_learning_rate=t.variance_learning_rate,
            schedule=t.schedule,
            clip_norm=t.clip_norm,
            early_stopping=t.early_stopping,
            log_every=t.log_every,
            validate_every=settings.evaluation.every,
            checkpoint_seconds=t.checkpoint_seconds,
        )
        self.total_steps = self.train_settings.total_steps(len(data.train))
        # The last batch of an epoch may be smaller: what a step covers on average.
        self.images_per_step = len(data.train) / math.ceil(len(data.train) / t.batch_size)
        if settings.model.fit == "closed_form":
            self.total_steps = 0
        self.logger = logging.Logger("vaerun.run", logging.INFO)  # this run's own: no other handler sees it
        self.warnings: list[str] = []
        self.record: dict[str, Any] = {}

    def warn(self, line: str) -> None:
        """One line on standard error and in run.log."""
        print(f"vaerun: warning: {line}", file=sys.stderr)
        if self.logger.handlers:
            self.logger.warning(line)
        else:
            self.warnings.append(line)  # run.log is opened once the run can no longer be refused

    def recorded(self, overrides: list[str], plain: dict[str, Any], hydra: str | None) -> dict[str, Any]:
        """Train and evaluate, with the status in result.json at every moment."""
        self.record = self._start_record(overrides)
        # Everything that can be refused has been: from here on the folder is this run's.
        state = self._state_to_resume()
        records.write_result(self.folder, self.record)
        records.write_config(self.folder, plain, overrides, hydra)
        handler = logging.FileHandler(self.folder / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.logger.addHandler(handler)
        self.logger.info("start: %s", " ".join(["vaerun", *overrides]))
        for line in self.warnings:
            self.logger.warning(line)
        try:
            self._train_and_evaluate(state)
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            self.record |= {"status": "interrupted" if stopped else "failed", "error": str(error) or repr(error)}
            known = isinstance(error, InputError | RunError | Interrupted | KeyboardInterrupt)
            self.logger.error("%s", self.record["error"] if known else traceback.format_exc())
            try:
                records.write_result(self.folder, self.record)
            except RunError as second:  # the disk that is full may be why the run failed: that one is to be told
                print(f"vaerun: warning: {second}", file=sys.stderr)
            raise
        finally:
            self.logger.removeHandler(handler)
            handler.close()
        return self.record

    def _start_record(self, overrides: list[str]) -> dict[str, Any]:
        s = self.settings
        images = len(self.data.test) if s.evaluation.images is None else min(s.evaluation.images, len(self.data.test))
        return {
            "schema": 1,
            "status": "running",
            "fingerprint": self.identity,
            "command": ["vaerun", *overrides],
            "model": s.model.name,
            "data": s.data.name,
            "estimator": s.estimator.name,
            "seed": s.seed,
            "metrics": {},
            "protocol": {
                "units": "nats per image",
                "likelihood": s.model.likelihood,
                **self.data.protocol,
                "conditional": s.model.conditional,
                "importance_samples": s.evaluation.samples,
                "evaluated_images": images,
                "selection": "best validation ELBO" if len(self.data.validation) else "last epoch",
                "selected_epoch": None,
            },
            "timing": {},
            "environment": records.environment(self.device),
            "error": None,
        }

    def _state_to_resume(self) -> dict[str, Any] | None:
        state, best = self.store.load_last(self.device), None
        if state is None and self.settings.trainer.resume not in ("auto", "never"):
            state, best = load_named(Path(self.settings.trainer.resume).expanduser(), self.device)
        if state is not None and self.settings.model.fit == "gradient":
            optimisers = make_optimisers(self.objective.phases, self.train_settings)
            restore(self.objective, optimisers, state, self.device)  # one that does not fit is refused here
        if best is not None:
            self.store.save_best({k: v for k, v in best.items() if k != "fingerprint"})
        return state

    def _train_and_evaluate(self, state: dict[str, Any] | None) -> None:
        progress = state["progress"] if state is not None else {"step": 0}
        log = Log(
            self.folder,
            position=state["log"] if state is not None else None,
            start_step=progress["step"],
            total_steps=self.total_steps,
            images_per_step=self.images_per_step,
        )
        try:
            with self.stop.deferred():
                closed_form = self.settings.model.fit == "closed_form"
                done = self._fit_closed_form() if closed_form else self._train(log, state)
                self._select(done)
                self._evaluate(log, done)
            self._finish(log, done)
        finally:
            log.close()

    # -- training -----------------------------------------------------------------------------------------------

    def _validator(self) -> Validator | None:
        if not len(self.data.validation):
            return None
        return Validator(
            self.model, self.data.validation, seed=self.settings.seed, batch_size=EVALUATION_BATCH, stop=self.stop
        )

    def _train(self, log: Log, state: dict[str, Any] | None) -> Progress:
        every, seen = self.settings.evaluation.pictures, 0

        def after_validation(step: int) -> None:
            nonlocal seen
            seen += 1
            if every and (seen - 1) % every == 0:
                self._pictures(log, step)

        return train(
            self.objective,
            self.data.train,
            self.train_settings,
            validate=self._validator(),
            after_validation=after_validation,
            log=log,
            store=self.store,
            stop=self.stop,
            resume=state,
        )

    def _fit_closed_form(self) -> Progress:
        started = time.perf_counter()
        ppca.fit_closed_form(self.model, (b.x for b in self.data.train.batches(4096)))
        self.objective.train(False)
        validate = self._validator()
        best = validate()["val/elbo"] if validate is not None else None
        self.store.save_best({"objective": self.objective.state_dict(), "epoch": 0.0})
        return Progress(best=best, finished=True, seconds=time.perf_counter() - started)

    def _select(self, done: Progress) -> None:
        from vaerun.training.checkpoint import Damaged, load

        path = self.store.folder / "best.pt"
        try:
            state = load(path, self.device)
        except Damaged as damage:
            raise RunError(
                f"cannot read {path}: {damage}; remove {self.store.folder} and run the same command to train again"
            ) from damage
        self.objective.load_state_dict(state["objective"])
        self.objective.train(False)
        self.record["protocol"]["selected_epoch"] = done.best_epoch
        if done.best is not None:
            self.record["metrics"]["val/elbo"] = done.best
        steps, seconds = done.timed_steps, done.seconds
        speed = steps / seconds if seconds and steps else None
        self.record["timing"] = {
            "train_seconds": round(seconds, 3),
            "train_steps": done.step,
            "steps_per_second": speed,
            "images_per_second": speed * self.images_per_step if speed else None,
        }

    # -- evaluation ---------------------------------------------------------------------------------------------

    def _evaluate(self, log: Log, done: Progress) -> None:
        e, started = self.settings.evaluation, time.perf_counter()
        values = evaluate_test(
            self.model,
            self.data,
            samples=e.samples,
            seed=self.settings.seed,
            images=self.record["protocol"]["evaluated_images"],
            chunk=e.chunk,
            stop=self.stop,
        )
        found: dict[str, float | None] = {}
        for name, value in values.items():
            found[f"test/{name}"] = float(value.mean())
            found[f"test/{name}_se"] = records.standard_error(value)
        self.record["metrics"] |= found
        self.record["timing"]["evaluation_seconds"] = round(time.perf_counter() - started, 3)
        bad = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise RunError(f"test/{bad[0]} is not finite for some images: the model's parameters have diverged")
        records.write_arrays(self.folder / "per_example.npz", {name: v.numpy() for name, v in values.items()})
        log.record(done.step, done.best_epoch, {k: v for k, v in found.items() if v is not None})
        self._pictures(log, done.step)

    def _pictures(self, log: Log, step: int) -> None:
        training = self.objective.training
        self.objective.train(False)
        split = self.data.validation if len(self.data.validation) else self.data.train
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, picture in pictures(self.model, split).items():
            log.image(f"images/{name}", picture, step)
            write_atomically(self.folder / "figures" / f"{name}.png", save_png(picture))
        self.objective.train(training)

    def _finish(self, log: Log, done: Progress) -> None:
        s = self.settings
        chosen: dict[str, Any] = {
            "data": s.data.name,
            "model": s.model.name,
            "estimator": s.estimator.name,
            "seed": s.seed,
            "latent_dim": s.model.latent_dim,
            "likelihood": s.model.likelihood,
            "epochs": s.trainer.epochs,
            "batch_size": s.trainer.batch_size,
            "learning_rate": s.trainer.learning_rate,
        }
        if "steps" in s.model.inference:
            chosen["inference.steps"] = s.model.inference["steps"]
        metrics = {k: v for k, v in self.record["metrics"].items() if v is not None and not k.endswith("_se")}
        log.hyperparameters(chosen, metrics)
        self.record["status"] = "ok"
        records.write_result(self.folder, self.record)
        text = records.table(self.record, self.folder)
        self.logger.info("done\n%s", text)
        print(text)
