"""Evaluation of models with a likelihood, and of plain autoencoders."""

from __future__ import annotations

import math

import torch

from vaerun.evaluation import importance_sampling
from vaerun.evaluation.adaptive.amis import MAX_LATENT_DIM
from vaerun.evaluation.latent.probe import probe_latents
from vaerun.evaluation.latent.statistics import LatentStatistics, latent_pictures, latent_statistics
from vaerun.evaluation.likelihood.gaps import inference_gaps, unconverged_share
from vaerun.evaluation.likelihood.gradient_noise import GradientNoise, format_table, gradient_noise
from vaerun.evaluation.likelihood.importance import DENSITY_METRICS, PARETO_K_LIMIT, unreliable_share
from vaerun.evaluation.plots.charts import bar_chart
from vaerun.evaluation.plots.pictures import sample_images
from vaerun.evaluation.results import EvaluationResults
from vaerun.models import LatentModel, ppca
from vaerun.run.build import estimators_by_name
from vaerun.run.evaluate.evaluator import Evaluator
from vaerun.run.evaluate.extremes import extremes_line
from vaerun.run.preflight import make_amis, make_refinement, uses_amis

BATCH = 500  # images per batch when there is one sample per image
COLLAPSE_KL = 0.1  # nats of KL(q || p) below which a posterior without active units counts as collapsed
MAX_UNRELIABLE_SHARE = 0.05  # fraction of images with a k-hat above its limit that is tolerated without a warning


class LikelihoodEvaluator(Evaluator[LatentModel]):
    """Evaluates a model with a likelihood, in nats per image, or a plain autoencoder."""

    def evaluate(self) -> EvaluationResults:
        s = self.settings
        if self.model.has_density:
            self.add_importance_sampling()
            self.add_adaptive_importance_sampling()
        else:
            self.reconstruction_error()
        if s.ais:
            self.annealing()
        if s.bdmc:
            self.bidirectional_monte_carlo(self.model)
        if s.estimates:
            self.estimates(self.model)
        if s.gaps:
            self.add_inference_gaps()
        latent = s.latent and self.model.has_density
        if latent or s.probe or s.arrays:
            statistics = latent_statistics(
                self.model, self.split, seed=self.seed, images=self.images, batch=BATCH, monitor=self.monitor
            )
            if latent:
                self.latent_space(statistics)
            if s.probe:
                self.add_linear_probe(statistics)
            if s.arrays:
                self.arrays(statistics)
        if s.gradient_noise:
            self.add_gradient_noise()
        if s.quality or s.inception_weights is not None:
            self.sample_quality()
        self.traversals()
        if (line := extremes_line(self.results, self.split, self.data.class_names)) is not None:
            self.results.texts.append(line)
        return self.results

    def add_importance_sampling(self) -> None:
        """Add the importance-weighted log-likelihood with its diagnostics, and the exact one if it is known."""
        results, s = self.results, self.settings
        with self.monitor.task(f"log-likelihood of {self.split.name}, K={s.samples}", self.images) as task:
            values = importance_sampling(
                self.model,
                self.split,
                samples=s.samples,
                seed=self.seed,
                images=self.images,
                chunk=s.chunk,
                monitor=task,
            )
        pareto_k = values.pop("pareto_k")
        for name, value in values.items():
            results.add_mean(name, value)
        results.per_image["pareto_k"] = pareto_k
        if ppca.is_linear_gaussian(self.model):
            batches = self.split.batches(BATCH, self.images)
            exact = [ppca.exact_log_likelihood(self.model, b.x) + b.log_det.cpu() for b in batches]
            results.add_mean("log_likelihood_exact", torch.cat(exact))
        if self.data.transform.dequantize:
            results.add_mean("bits_per_dimension", self.bits_per_dimension(values["log_likelihood"]))
        share = unreliable_share(pareto_k)
        if not math.isnan(share):  # NaN: too few samples to estimate k-hat
            results.metrics["pareto_k_unreliable"] = share
        if share > MAX_UNRELIABLE_SHARE:
            if uses_amis(s, self.model):
                remedy = f"models by {self.split.name}/amis"
            elif s.ais:
                remedy = f"with {self.split.name}/ais"
            else:
                remedy = "models by evaluation.amis=true, or with evaluation.ais=true"
            results.warnings.append(
                f"{self.split.name}/log_likelihood is not reliable for {share:.0%} of the images (Pareto k-hat above "
                f"{PARETO_K_LIMIT}: q misses part of the posterior); compare {remedy}"
            )
        results.non_finite_metric = next(
            (n for n in DENSITY_METRICS if not bool(torch.isfinite(values[n]).all())), None
        )

    def add_adaptive_importance_sampling(self) -> None:
        """Add adaptive importance sampling, and its differences from plain importance sampling and from the ELBO."""
        results = self.results
        if not uses_amis(self.settings, self.model):
            if self.settings.amis.enabled is None:
                results.warnings.append(
                    f"no {self.split.name}/amis: adaptive importance sampling supports up to {MAX_LATENT_DIM} latent "
                    f"dimensions, and this model has {self.model.latent_dim}; evaluation.ais=true does without q, too"
                )
            return
        amis = self.adaptive_importance_sampling(self.model, posterior_start=True)
        results.add_mean("amis_minus_is", amis - results.per_image["log_likelihood"][: len(amis)])
        results.add_mean("gap_posterior", amis - results.per_image["elbo"][: len(amis)])

    def reconstruction_error(self) -> None:
        """Add |x - E[x | z]|^2 at the encoder's z, the only metric of a plain autoencoder."""
        parts = []
        with torch.no_grad():
            for batch in self.split.batches(BATCH, self.images):
                c = batch.c if self.model.classes else None
                z = self.model.infer(self.model.joint(batch.x, c)).centre
                parts.append((batch.x - self.model.decode_mean(z, c)).flatten(1).square().sum(1).cpu().double())
        errors = torch.cat(parts)
        self.results.add_mean("reconstruction_error", errors)
        self.results.non_finite_metric = None if bool(errors.isfinite().all()) else "reconstruction_error"

    def annealing(self) -> None:
        """Add annealed importance sampling, and its difference from plain importance sampling on the same images."""
        ais = self.annealed_importance_sampling(self.model)
        self.results.add_mean("ais_minus_is", ais - self.results.per_image["log_likelihood"][: len(ais)])

    def add_inference_gaps(self) -> None:
        """Add the approximation and amortisation gaps."""
        s, results = self.settings, self.results
        n = min(self.images, s.gap.images)
        amis = results.per_image.get("amis")
        with self.monitor.task(f"inference gaps of {self.split.name}", n) as task:
            values = inference_gaps(
                self.model,
                self.split,
                make_refinement(s),
                importance_samples=s.samples,
                elbo_samples=s.samples,
                seed=self.seed,
                amis=make_amis(s) if self.model.latent_dim <= MAX_LATENT_DIM else None,
                log_likelihood=None if amis is None or len(amis) < n else amis[:n],
                images=n,
                monitor=task,
            )
        if "gap_from_mode" not in values:
            results.warnings.append(
                "inference gaps: q* is searched from q alone, because this family of posteriors cannot be moved to a "
                f"mode, or has over {MAX_LATENT_DIM} dimensions; where q is on the wrong mode, gap_amortisation is low"
            )
        pareto_k = values.pop("gap_pareto_k")
        results.per_image["gap_pareto_k"] = pareto_k
        if not math.isnan(share := unreliable_share(pareto_k)):
            results.metrics["gap_pareto_k_unreliable"] = share
        for name, value in values.items():
            results.add_mean(name if name.startswith("gap_") else f"gap_{name}", value.double())
        if unconverged := unconverged_share(values["gap_converged"]):
            results.warnings.append(
                f"{unconverged:.0%} of the images were still improving at evaluation.gap.max_steps={s.gap.max_steps}: "
                "their amortisation gap is a lower bound, their approximation gap an upper bound"
            )
        parts = {part: float(values[f"gap_{part}"].mean()) for part in ("approximation", "amortisation")}
        title = f"Inference gap, mean over {n} {self.split.name} images"
        results.pictures["gaps"] = bar_chart(
            {"log p(x) - ELBO": parts}, ylabel="nats per image", title=title, stacked=True
        )

    def latent_space(self, statistics: LatentStatistics) -> None:
        """Add the KL per latent dimension, active units and pictures of the latent space."""
        results = self.results
        results.details["kl_by_dimension"] = statistics.kl.tolist()
        results.pictures |= latent_pictures(statistics, self.data.class_names or None)
        infinite = int((~statistics.kl.isfinite()).sum())
        if infinite:
            results.warnings.append(
                f"kl_by_dimension is not finite for {infinite} of {len(statistics.kl)} latent dimensions: q has a "
                "variance of 0 or infinity there, in single precision"
            )
        if len(statistics.means) < 2:
            return  # active units require a variance over images
        results.metrics["active_units"] = float(statistics.active_units)
        kl = results.metrics["kl"]  # None: not finite
        if not statistics.active_units and kl is not None and kl < COLLAPSE_KL:
            results.warnings.append(
                f"posterior collapse: q hardly differs from the prior on {self.split.name} (no active units, KL below "
                f"{COLLAPSE_KL} nats): the decoder ignores z"
            )

    def add_linear_probe(self, statistics: LatentStatistics) -> None:
        """Add the accuracy of a linear classifier on the posterior means."""
        monitor = self.monitor.without_warnings()
        probe = probe_latents(self.model, self.data.train, statistics, seed=self.seed, monitor=monitor)
        self.results.metrics |= {"probe_accuracy": probe.accuracy, "probe_majority": probe.baseline}
        if probe.warning:
            self.results.warnings.append(f"linear probe: {probe.warning}")

    def arrays(self, statistics: LatentStatistics) -> None:
        """Add arrays of posterior moments, reconstructions, samples and labels."""
        n, split, model = len(statistics.means), self.split, self.model
        to_unit = split.transform.to_unit
        reconstructions = []
        with torch.no_grad():
            for batch in split.batches(BATCH, n):
                c = batch.c if model.classes else None
                z = statistics.means[batch.rows[0] : batch.rows[-1] + 1].to(model.mean)
                reconstructions.append(to_unit(model.decode_mean(z, c)).float().cpu())
            if model.has_density:
                self.results.arrays["samples"] = to_unit(sample_images(model, split)).float().cpu().numpy()
        self.results.arrays |= {
            "posterior_mean": statistics.means.numpy(),
            "posterior_variance": statistics.variances.numpy(),
            "reconstructions": torch.cat(reconstructions).numpy(),
        }
        if split.labels is not None:
            self.results.arrays["labels"] = split.labels[:n].cpu().numpy()

    def add_gradient_noise(self) -> None:
        """Add the gradient noise of several estimators: a table, metrics and charts."""
        noise = self.settings.noise
        batch = self.split.batch(0, min(noise.images, len(self.split)))
        estimators = estimators_by_name(noise.estimators)
        with self.monitor.task("gradient noise", len(estimators), unit="estimators") as task:
            values = gradient_noise(
                self.model,
                batch.x,
                batch.c if self.model.classes else None,
                estimators,
                samples=noise.samples,
                draws=noise.draws,
                seed=self.seed,
                monitor=task,
            )
        title = (
            f"Gradient of the mean over {len(batch.x)} {self.split.name} images, K={noise.samples}, {noise.draws} draws"
        )
        self.results.texts.append(f"{title}\n{format_table(values)}")
        measured = {name: groups for name, groups in values.items() if not isinstance(groups, str)}
        for name, groups in measured.items():
            for group, group_noise in groups.items():
                for metric in ("variance", "variance_error", "norm", "snr"):
                    value = getattr(group_noise, metric)
                    self.results.metrics[f"gradient_noise/{name}/{group}/{metric}"] = (
                        value if math.isfinite(value) else None
                    )
        if measured:
            self._gradient_charts(measured, title)

    def _gradient_charts(self, measured: dict[str, dict[str, GradientNoise]], title: str) -> None:
        def by_group(metric: str) -> dict[str, dict[str, float]]:
            return {
                name: {group: getattr(noise, metric) for group, noise in groups.items()}
                for name, groups in measured.items()
            }

        self.results.pictures["gradient_variance"] = bar_chart(
            by_group("variance"),
            ylabel="variance, mean over parameters",
            title=title,
            log=True,
            errors=by_group("variance_error"),
        )
        self.results.pictures["gradient_snr"] = bar_chart(
            by_group("snr"), ylabel="signal-to-noise ratio", title=title, log=True
        )
