"""Evaluation of adversarial models."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from vaerun.data.dataset import Split
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
from vaerun.run.evaluate.classifier import labels_are_classes
from vaerun.run.evaluate.evaluator import Evaluator
from vaerun.run.preflight import make_annealing, uses_amis, uses_observation_model

BATCH = 500


class AdversarialEvaluator(Evaluator[AdversarialModel]):
    """Evaluates an adversarial model."""

    def evaluate(self) -> EvaluationResults:
        s, results = self.settings, self.results
        self.sample_quality()
        self.mode_collapse()
        codes = self.model.codes
        if codes is not None and codes.categorical and self.split.labels is not None:
            if labels_are_classes(self.data):
                self.code_accuracy()
            else:
                results.warnings.append(
                    f"the labels of {self.data.name} are not classes: codes are not matched to them"
                )
        if s.probe:
            self.add_linear_probe()
        if s.parzen:
            self.parzen()
        if uses_observation_model(s, self.model):
            self.density()
        if s.arrays:
            results.arrays["samples"] = sample_images(self.model, self.split).float().cpu().numpy()
            if self.model.classes:
                results.arrays["sample_labels"] = sample_labels(self.model.classes).numpy()
        self.traversals()
        return results

    def mode_collapse(self) -> None:
        """Add whether the diversity is below its threshold."""
        results, threshold = self.results, self.settings.diversity
        collapsed = not (results.metrics["diversity"] or 0.0) >= threshold
        results.metrics["mode_collapse"] = float(collapsed)
        if collapsed:
            results.warnings.append(
                f"mode collapse (or too little training): generated images have {results.metrics['diversity']:.2f} of "
                f"the diversity of the {self.split.name} images, below evaluation.diversity={threshold:g}"
            )

    def code_accuracy(self) -> None:
        """Add the accuracy of each categorical code with respect to the labels, under the best matching."""
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
            matched = cluster_accuracy(torch.cat(values), labels, categories, self.data.classes)
            name = f"categorical_{i}"
            self.results.metrics |= {f"{name}_accuracy": matched.accuracy, f"{name}_baseline": matched.baseline}
            self.results.details[f"{name}_matching"] = {str(k): v for k, v in matched.assignment.items()}

    def features(self, split: Split, images: int | None = None) -> Tensor:
        """The discriminator's pooled features [N, F] of the split's first images, on the CPU."""
        parts = []
        with torch.no_grad():
            for batch in split.batches(BATCH, images):
                self.monitor.check()
                parts.append(pooled_features(self.model.feature_maps(split.transform.to_unit(batch.x))).cpu())
        return torch.cat(parts)

    def add_linear_probe(self) -> None:
        """Add the accuracy of a linear classifier on the discriminator's features."""
        train, test = self.data.train, self.split
        assert train.labels is not None
        assert test.labels is not None
        rows = permutation(len(train), self.seed, "probe")[:TRAIN_IMAGES].sort().values.to(train.images.device)
        subset = Split(
            train.name, train.images[rows], train.labels[rows], train.classes, train.transform, train.binarised
        )
        probe = linear_probe(
            self.features(subset),
            subset.labels,
            self.features(test, self.images),
            test.labels[: self.images],
            seed=self.seed,
        )
        self.results.metrics |= {"probe_accuracy": probe.accuracy, "probe_majority": probe.baseline}
        if probe.warning:
            self.results.warnings.append(f"linear probe: {probe.warning}")

    def parzen(self) -> None:
        """Add the Parzen-window log-likelihood."""
        results, s = self.results, self.settings
        validation = real_images(self.data.validation, len(self.data.validation))
        samples = generate_images(self.model, self.split, s.generated.samples, seed=self.seed, monitor=self.monitor)[0]
        variance, values = choose_parzen_variance(samples, validation)
        log_likelihood = parzen_log_likelihood(samples, real_images(self.split, self.images), variance)
        results.add_mean("parzen_log_likelihood", log_likelihood)
        results.metrics["parzen_variance"] = variance
        results.warnings.append(WARNING)
        if is_at_edge(variance, values):
            results.warnings.append(f"the Parzen window's variance {variance:.3g} is at the edge of the values tried")

    def density(self) -> None:
        """Add the log-likelihood under the observation model N(G(z), s2 I)."""
        variance = self.model.variance
        if variance is None:
            variance = self.observation_variance()
        self.results.metrics["observation_variance"] = variance
        model = self.model.observation_model(variance)
        if uses_amis(self.settings, self.model):
            self.adaptive_importance_sampling(model, posterior_start=False)
        if self.settings.ais:
            self.annealed_importance_sampling(model)
        if self.settings.bdmc:
            self.bidirectional_monte_carlo(model)
        if self.settings.estimates:
            self.estimates(model)

    def observation_variance(self) -> float:
        """Choose s2 on validation images."""
        observation, results = self.settings.observation, self.results
        n = min(observation.images, len(self.data.validation))
        images = n * max_runs(observation.variances)
        with self.monitor.without_warnings().task("choosing the observation variance", images) as task:
            choice = choose_variance(
                self.model.observation_model,
                self.data.validation,
                make_annealing(self.settings),
                variances=observation.variances,
                images=n,
                seed=self.seed,
                monitor=task,
            )
        results.details["observation"] = {"images": n, **asdict(choice)}
        results.details["observation"]["values"] = {f"{k:.4g}": v for k, v in sorted(choice.values.items())}
        if choice.at_edge:
            results.warnings.append(
                f"the observation variance {choice.variance:.3g} is at the edge of the values tried: extend "
                "evaluation.observation.variances"
            )
        return choice.variance
