"""Evaluations shared by all model families: annealed importance sampling, sample quality and latent traversals."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Generic, TypeVar

import torch
from torch import Tensor

from vaerun.config.schema import EvaluationSettings
from vaerun.data.dataset import ImageData, Split
from vaerun.evaluation.adaptive.adaptation import EQUAL
from vaerun.evaluation.adaptive.amis import adaptive_importance_sampling, amis_bracket
from vaerun.evaluation.latent.traversals import arithmetic, interpolation, parse_sets
from vaerun.evaluation.likelihood.annealed import annealed_importance_sampling, bidirectional
from vaerun.evaluation.likelihood.estimates import annealing_cost, estimates_by_samples
from vaerun.evaluation.likelihood.importance import PARETO_K_LIMIT, unreliable_share
from vaerun.evaluation.plots.estimates import estimates_chart, summarise
from vaerun.evaluation.results import EvaluationResults
from vaerun.evaluation.samples.inception import PUBLISHED_SHA256, check_inception, inception_features
from vaerun.evaluation.samples.sample_quality import diversity, frechet_distance, prdc
from vaerun.evaluation.samples.sample_validation import DIVERSITY_IMAGES, generate_images, real_images
from vaerun.models import AdversarialModel, LatentModel
from vaerun.run.build import MAX_CLASSES
from vaerun.run.evaluate.classifier import dataset_classifier, has_classifier
from vaerun.run.preflight import make_amis, make_annealing, make_estimates
from vaerun.signals import ShutdownSignal
from vaerun.storage.paths import expand_user
from vaerun.tracking.monitor import Monitor

NAMED_IMAGES = 10  # named in a warning
WIDE_BRACKET = 0.5  # nats, mean over simulated images, above which a warning is printed

M = TypeVar("M", LatentModel, AdversarialModel)


class Evaluator(ABC, Generic[M]):
    """Evaluates a model on the first `settings.images` images of `settings.split`.

    Each method is one part of the evaluation and adds to `results`.

    Arguments:
        model: model in evaluation mode.
        data: data set; the training split is used by the linear probe, the validation split to choose variances.
        settings: evaluation settings.
        seed: seed of all noise.
        stop: shutdown signals, checked between units of work.
    """

    def __init__(
        self, model: M, data: ImageData, settings: EvaluationSettings, *, seed: int, stop: ShutdownSignal
    ) -> None:
        self.model: M = model
        self.data, self.settings, self.seed = data, settings, seed
        self.split: Split = getattr(data, settings.split)
        self.images = min(settings.images or len(self.split), len(self.split))
        self.results = EvaluationResults(ids=self.split.ids[: self.images])
        self.monitor = Monitor(stop, warn=self.results.warnings.append)

    @abstractmethod
    def evaluate(self) -> EvaluationResults:
        """Run all parts of the configured evaluation."""

    @property
    def annealed_images(self) -> int:
        """Number of images for annealed importance sampling."""
        return min(self.images, self.settings.annealing.images)

    def annealed_importance_sampling(self, model: LatentModel) -> Tensor:
        """Add ais, ais_ess and ais_acceptance; return ais per image [N], in nats."""
        n = self.annealed_images
        with self.monitor.task(f"annealed importance sampling of {self.split.name}", n) as task:
            values = annealed_importance_sampling(
                model, self.split, make_annealing(self.settings), seed=self.seed, images=n, monitor=task
            )
        for name, value in values.items():
            self.results.add_mean(name, value)
        return values["ais"]

    def adaptive_importance_sampling(self, model: LatentModel, *, posterior_start: bool) -> Tensor:
        """Add amis, its diagnostics and its bracket on simulated images; return amis per image [N], in nats.

        Arguments:
            model: the model, with a likelihood.
            posterior_start: whether it has an inference whose mean is a good first guess.
        """
        s, results = self.settings.amis, self.results
        n = min(self.images, s.images or self.images)
        with self.monitor.task(f"adaptive importance sampling of {self.split.name}, K={s.samples}", n) as task:
            values = adaptive_importance_sampling(
                model,
                self.split,
                make_amis(self.settings),
                seed=self.seed,
                images=n,
                posterior_start=posterior_start,
                chunk=self.settings.chunk,
                monitor=task,
            )
        self._replace_unreliable(model, values)
        results.per_image |= values
        results.add_mean("amis", values["amis"])
        results.add_mean("amis_ess", values["amis_ess"])
        results.metrics["amis_bridged"] = float(values["amis_bridged"].mean())
        if not math.isnan(share := unreliable_share(values["amis_pareto_k"])):
            results.metrics["amis_pareto_k_unreliable"] = share
        if s.max_starts >= 2 * s.starts:  # otherwise no image had twice as many
            results.metrics["amis_starts_disagree"] = float(values["amis_starts_disagree"].mean())
        if s.fallback is not None:
            results.metrics["amis_fallback"] = float(values["amis_fallback"].mean())
        if self.data.transform.dequantize:
            results.add_mean("amis_bits_per_dimension", self.bits_per_dimension(values["amis"]))
        if s.simulated:
            self._bracket(model, min(n, s.simulated), posterior_start)
        return values["amis"]

    def _replace_unreliable(self, model: LatentModel, values: dict[str, Tensor]) -> None:
        """Name the images whose `amis` is not reliable; if they are few, replace it by annealed importance sampling.

        AIS's value is used even if it is the smaller: each is a lower bound in expectation, their maximum is not. The
        choice depends on the estimate's own samples; but leaving out estimates with large weights does not raise the
        mean.
        """
        s, results = self.settings.amis, self.results
        values["amis_fallback"] = torch.zeros_like(values["amis"])
        samples = torch.where(values["amis_bridged"] > 0, make_amis(self.settings).chains, s.samples)
        unequal = values["amis_ess"] < EQUAL * samples
        failed = ((values["amis_pareto_k"] > PARETO_K_LIMIT) & unequal) | ~values["amis"].isfinite()
        rows: list[int] = failed.nonzero()[:, 0].tolist()
        results.details["amis_unreliable"] = rows
        if not rows:
            return
        named = ", ".join(map(str, rows[:NAMED_IMAGES]))
        if len(rows) > NAMED_IMAGES:
            named += ", ... (all: details.amis_unreliable in result.json)"
        line = (
            f"{self.split.name}/amis is not reliable for {len(rows)} of {len(failed)} images (Pareto k-hat above "
            f"{PARETO_K_LIMIT} and fewer than K/2 effective samples), counted from 0: {named}"
        )
        if s.fallback is None:
            results.warnings.append(
                f"{line}; evaluation.amis.fallback=ais and evaluation.amis.fallback_images={len(rows)} evaluate them "
                "by annealed importance sampling"
            )
            return
        if len(rows) > s.fallback_images:
            results.warnings.append(
                f"{line}; these are more than evaluation.amis.fallback_images={s.fallback_images}, so they are not "
                "evaluated by annealed importance sampling: raise it, or set evaluation.ais=true"
            )
            return
        results.warnings.append(f"{line}; for these it is that of annealed importance sampling")
        title = f"annealed importance sampling of {self.split.name} images for which amis is not reliable"
        with self.monitor.task(title, len(rows)) as task:
            annealed = annealed_importance_sampling(
                model, self.split, make_annealing(self.settings), seed=self.seed, images=rows, monitor=task
            )
        values["amis"][failed] = annealed["ais"]
        values["amis_fallback"][failed] = 1.0

    def _bracket(self, model: LatentModel, images: int, posterior_start: bool) -> None:
        """Add amis_lower, amis_upper and their gap, for images simulated from the model, without the fallback."""
        with self.monitor.task("adaptive importance sampling of simulated images", images) as task:
            values = amis_bracket(
                model,
                make_amis(self.settings),
                images=images,
                seed=self.seed,
                posterior_start=posterior_start,
                chunk=self.settings.chunk,
                monitor=task,
            )
        for name, value in values.items():
            self.results.add_mean(name, value)
        gap = values["amis_upper"] - values["amis_lower"]
        self.results.add_mean("amis_gap", gap)
        if (wide := float(gap.mean())) > WIDE_BRACKET:
            self.results.warnings.append(
                f"{self.split.name}/amis_gap={wide:.1f}: adaptive importance sampling misses modes of images drawn "
                "from the model: raise evaluation.amis.starts, or compare with evaluation.ais=true evaluation.bdmc=true"
            )

    def bits_per_dimension(self, log_likelihood: Tensor) -> Tensor:
        """Code length in bits of 8-bit pixels, from nats of dequantised ones: [N] -> [N]."""
        return 8 - log_likelihood / (self.data.dimensions * math.log(2))

    def bidirectional_monte_carlo(self, model: LatentModel) -> None:
        """Add bdmc_lower, bdmc_upper, their gap and acceptance rates, for images simulated from the model."""
        n = self.annealed_images
        with self.monitor.task("bidirectional Monte Carlo on simulated images", n) as task:
            values = bidirectional(model, make_annealing(self.settings), images=n, seed=self.seed, monitor=task)
        for name, value in values.items():
            self.results.add_mean(name, value)
        self.results.add_mean("bdmc_gap", values["bdmc_upper"] - values["bdmc_lower"])

    def estimates(self, model: LatentModel) -> None:
        """Add the estimates of log p(x) against the number of samples: a picture, details and arrays."""
        settings, results = self.settings, self.results
        n, estimates = min(self.images, settings.estimate.images), make_estimates(settings)
        with self.monitor.task(f"estimates against K of {self.split.name}", n) as task:
            values = estimates_by_samples(
                model,
                self.split,
                estimates,
                make_amis(settings),
                seed=self.seed,
                images=n,
                posterior=isinstance(self.model, LatentModel),
                chunk=settings.chunk,
                monitor=task,
            )
        cost = float(values.pop("amis_cost").mean())
        curves = {method: summarise(value) for method, value in values.items()}
        ais = results.per_image.get("ais")
        point = None
        if ais is not None and len(ais) >= n and bool(ais[:n].isfinite().all()):
            point = annealing_cost(make_annealing(settings)), float(ais[:n].mean())
        results.details["estimates"] = {
            "images": n,
            "repeats": estimates.repeats,
            "samples": estimates.sizes,
            **curves,
            "amis_adaptation_evaluations": cost,
            "ais": None if point is None else {"evaluations": point[0], "value": point[1]},
        }
        if settings.arrays:
            results.arrays |= {f"estimates_{method}": value.numpy() for method, value in values.items()}
        spread = f"median and range of {estimates.repeats} repeats"
        title = f"Estimates of log p(x), mean over {n} {self.split.name} images: {spread}"
        results.pictures["estimates"] = estimates_chart(estimates.sizes, curves, amis_cost=cost, ais=point, title=title)

    def sample_quality(self) -> None:
        """Compare generated images with the same number of real ones, by diversity and by distances in feature spaces.

        Adds diversity; with `settings.quality`, classifier_frechet_distance, precision, recall, density, coverage and,
        for conditional models, label_agreement; with Inception weights, inception_frechet_distance.
        """
        settings, results = self.settings, self.results
        count = min(settings.generated.samples, self.images)
        if not settings.quality and settings.inception_weights is None:
            count = min(count, DIVERSITY_IMAGES)
        with self.monitor.task("generating images", count) as task:
            fake, labels = generate_images(self.model, self.split, count, seed=self.seed, monitor=task)
            real = real_images(self.split, count)
            results.metrics["diversity"] = diversity(fake[:DIVERSITY_IMAGES], real[:DIVERSITY_IMAGES])
            if settings.quality and not has_classifier(self.data):
                results.warnings.append(
                    f"data set {self.data.name} has no labels of two to {MAX_CLASSES} classes, with two or more images "
                    "each on average, so there is no classifier to compare features of: no Frechet distance, "
                    "precision, recall, density and coverage"
                )
            elif settings.quality:
                self._classifier_metrics(real, fake, labels, task)
            if settings.inception_weights is not None:
                self._inception_distance(real, fake)

    def _classifier_metrics(self, real: Tensor, fake: Tensor, labels: Tensor | None, monitor: Monitor) -> None:
        """Add the metrics in the feature space of the data set's classifier."""
        metrics = self.results.metrics
        classifier = dataset_classifier(self.data, monitor)
        monitor.check()
        real_features, fake_features = classifier.features(real), classifier.features(fake)
        metrics["classifier_frechet_distance"] = frechet_distance(real_features, fake_features)
        support = prdc(real_features, fake_features, neighbours=self.settings.generated.neighbours)
        metrics |= {name: float(value) for name, value in asdict(support).items()}
        self.results.details["classifier"] = {"name": classifier.name, "accuracy": classifier.accuracy}
        if labels is not None:
            metrics["label_agreement"] = float((classifier.predict(fake) == labels.cpu()).double().mean())

    def _inception_distance(self, real: Tensor, fake: Tensor) -> None:
        """Add the Frechet distance between features of the Inception network."""
        assert self.settings.inception_weights is not None
        weights = expand_user(self.settings.inception_weights)
        sha256 = check_inception(weights)
        features = inception_features(weights, device=self.split.images.device)
        self.results.metrics["inception_frechet_distance"] = frechet_distance(features(real), features(fake))
        published = sha256.startswith(PUBLISHED_SHA256)
        self.results.details["inception"] = {"sha256": sha256, "standard": published}
        if not published:
            self.results.warnings.append(
                f"{weights} does not hold the weights of published FIDs (sha256 {PUBLISHED_SHA256}...): the distance "
                "is comparable only to others with the same weights"
            )

    def traversals(self) -> None:
        """Add the pictures `interpolation` and `arithmetic_N`, computed from named sets of samples."""
        settings, results, split = self.settings, self.results, self.split
        if not settings.interpolation and not settings.arithmetic:
            return
        sets, noise_dim, like = parse_sets(settings.sets), self.model.noise_dim, self.data.mean
        c, given = None, ""
        if self.model.classes:
            label = self.data.class_index(settings.label)
            c = split.one_hot(torch.tensor(label, device=like.device))
            given = f", class {self.data.class_names[label]}"

        def generate(noise: Tensor, labels: Tensor | None) -> Tensor:
            return split.transform.to_unit(self.model.generate(noise, labels))

        if settings.interpolation:
            waypoints = settings.interpolation
            results.pictures["interpolation"] = interpolation(generate, waypoints, sets, noise_dim, like, c=c)
            path = " -> ".join(map(str, waypoints))
            results.texts.append(f"figure interpolation: {path}{given}, one row per pair, along great circles")
        for number, expression in enumerate(settings.arithmetic, 1):
            name = f"arithmetic_{number}"
            results.pictures[name], caption = arithmetic(generate, expression, sets, noise_dim, like, c=c)
            results.texts.append(
                f"figure {name}: {caption}{given}; the operands, then the result among eight neighbours"
            )
