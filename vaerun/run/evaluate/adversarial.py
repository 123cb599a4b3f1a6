"""Everything that is evaluated of an adversarial model on a split."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from vaerun.config.schema import EvaluationSettings
from vaerun.data.dataset import ImageData, Split
from vaerun.evaluation.latent.cluster_accuracy import cluster_accuracy
from vaerun.evaluation.latent.probe import TRAIN_IMAGES, linear_probe
from vaerun.evaluation.likelihood.observation_variance import choose_variance, max_runs
from vaerun.evaluation.likelihood.parzen import WARNING, choose_parzen_variance, is_at_edge, parzen_log_likelihood
from vaerun.evaluation.plots.pictures import sample_images, sample_labels
from vaerun.evaluation.results import EvaluationResults
from vaerun.evaluation.samples.feature_pooling import pooled_features
from vaerun.evaluation.samples.sample_validation import generate_images, real_images
from vaerun.models import AdversarialModel
from vaerun.randomness import permutation
from vaerun.run.build import MAX_CLASSES
from vaerun.run.evaluate.evaluator import Evaluator
from vaerun.run.evaluate.samples import sample_quality, traversal_pictures
from vaerun.run.preflight import make_annealing
from vaerun.signals import ShutdownSignal

BATCH = 500


def evaluate_adversarial(
    model: AdversarialModel, data: ImageData, settings: EvaluationSettings, *, seed: int, stop: ShutdownSignal
) -> EvaluationResults:
    """Evaluate the model against the first `settings.images` images of `settings.split`.

    Arguments:
        model: in evaluation mode.
        data: whose splits are used: validation to choose variances, training for the linear probe.
        settings: what to do.
        seed: of all noise.
        stop: looked at between pieces of work.
    """
    return AdversarialEvaluator(model, data, settings, seed, stop).run()


class AdversarialEvaluator(Evaluator[AdversarialModel]):
    """One evaluation of an adversarial model."""

    def run(self) -> EvaluationResults:
        s, found = self.settings, self.results
        sample_quality(self.model, self.data, s, found, seed=self.seed, monitor=self.monitor)
        collapsed = not (found.metrics["diversity"] or 0.0) >= s.diversity
        found.metrics["mode_collapse"] = float(collapsed)
        if collapsed:
            found.warnings.append(
                "mode collapse (or too little training): generated images have "
                f"{found.metrics['diversity']:.2f} of the diversity of the "
                f"{self.split.name} images, below evaluation.diversity={s.diversity:g}"
            )
        if self.model.codes is not None and self.model.codes.categorical and self.split.labels is not None:
            if self.data.classes <= MAX_CLASSES:
                self.code_accuracy()
            else:
                found.warnings.append(f"the labels of {self.data.name} are no classes: no code was matched to them")
        if s.probe:
            self.probe()
        if s.parzen:
            self.parzen()
        if s.ais or s.bdmc:
            self.density()
        if s.arrays:
            found.arrays["samples"] = sample_images(self.model, self.split).float().cpu().numpy()
            if self.model.classes:
                found.arrays["sample_labels"] = sample_labels(self.model.classes).numpy()
        traversal_pictures(self.model, self.data, s, found)
        return found

    def code_accuracy(self) -> None:
        """Accuracy of each categorical code against the labels under the best matching."""
        codes = self.model.codes
        assert codes is not None
        assert self.split.labels is not None
        predicted: list[list[Tensor]] = []
        with torch.no_grad():
            for batch in self.split.batches(BATCH, self.images):
                self.monitor.check()
                q = self.model.discriminator(2 * self.split.transform.to_unit(batch.x) - 1)[1]
                predicted.append([p.cpu() for p in codes.predict(q)])
        labels = self.split.labels[: self.images].cpu()
        for i, (categories, values) in enumerate(zip(codes.categorical, zip(*predicted, strict=True), strict=True), 1):
            one = cluster_accuracy(torch.cat(values), labels, categories, self.data.classes)
            name = f"categorical_{i}"
            self.results.metrics |= {f"{name}_accuracy": one.accuracy, f"{name}_baseline": one.baseline}
            self.results.details[f"{name}_matching"] = {str(k): v for k, v in one.assignment.items()}

    def features(self, split: Split, images: int | None = None) -> Tensor:
        """The discriminator's features of the split's first images, pooled: [N, F] on the CPU."""
        parts = []
        with torch.no_grad():
            for batch in split.batches(BATCH, images):
                self.monitor.check()
                parts.append(pooled_features(self.model.feature_maps(split.transform.to_unit(batch.x))).cpu())
        return torch.cat(parts)

    def probe(self) -> None:
        train, test = self.data.train, self.split
        assert train.labels is not None
        assert test.labels is not None
        rows = permutation(len(train), self.seed, "probe")[:TRAIN_IMAGES].sort().values.to(train.images.device)
        some = Split(
            train.name, train.images[rows], train.labels[rows], train.classes, train.transform, train.binarised
        )
        fitted, fresh = self.features(some), self.features(test, self.images)
        probe = linear_probe(fitted, some.labels, fresh, test.labels[: self.images], seed=self.seed)
        self.results.metrics |= {"probe_accuracy": probe.accuracy, "probe_majority": probe.baseline}
        if probe.warning:
            self.results.warnings.append(f"linear probe: {probe.warning}")

    def parzen(self) -> None:
        found, s = self.results, self.settings
        validation = real_images(self.data.validation, len(self.data.validation))
        centres = generate_images(self.model, self.split, s.generated.samples, seed=self.seed, monitor=self.monitor)[0]
        variance, tried = choose_parzen_variance(centres, validation)
        found.add_mean(
            "parzen_log_likelihood", parzen_log_likelihood(centres, real_images(self.split, self.images), variance)
        )
        found.metrics["parzen_variance"] = variance
        found.warnings.append(WARNING)
        if is_at_edge(variance, tried):
            found.warnings.append(f"the Parzen window's variance {variance:.3g} is at the edge of what was tried")

    def density(self) -> None:
        """Log-likelihood under the observation model N(G(z), s2 I)."""
        variance = self.model.variance
        if variance is None:
            variance = self.observation_variance()
        self.results.metrics["observation_variance"] = variance
        observed = self.model.observation_model(variance)
        if self.settings.ais:
            self.annealed_importance_sampling(observed)
        if self.settings.bdmc:
            self.bidirectional_monte_carlo(observed)

    def observation_variance(self) -> float:
        """s2 chosen on validation images."""
        o, found = self.settings.observation, self.results
        n = min(o.images, len(self.data.validation))
        runs = max_runs(o.variances)
        with self.monitor.without_warnings().task("choosing the observation variance", n * runs) as task:
            choice = choose_variance(
                self.model.observation_model,
                self.data.validation,
                make_annealing(self.settings),
                variances=o.variances,
                images=n,
                seed=self.seed,
                monitor=task,
            )
        found.details["observation"] = {"images": n, **asdict(choice)}
        found.details["observation"]["values"] = {f"{k:.4g}": v for k, v in sorted(choice.values.items())}
        if choice.at_edge:
            found.warnings.append(
                f"the observation variance {choice.variance:.3g} is at the edge of what was tried: extend "
                "evaluation.observation.variances"
            )
        return choice.variance
