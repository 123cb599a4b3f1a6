"""Everything that is evaluated of a model on a split: numbers, values per image, pictures, warnings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaerun.config.schema import EvaluationSettings
from vaerun.data.dataset import ImageData
from vaerun.evaluation import importance_sampling
from vaerun.evaluation.latent.probe import probe_latents
from vaerun.evaluation.latent.statistics import LatentStatistics, latent_pictures, latent_statistics
from vaerun.evaluation.likelihood.gaps import inference_gaps, unconverged_share
from vaerun.evaluation.likelihood.gradient_noise import format_table, gradient_noise
from vaerun.evaluation.likelihood.importance import DENSITY_METRICS, PARETO_K_LIMIT, unreliable_share
from vaerun.evaluation.plots.charts import bar_chart
from vaerun.evaluation.plots.pictures import sample_images
from vaerun.evaluation.results import EvaluationResults
from vaerun.models import LatentModel, ppca
from vaerun.run.build import estimators_by_name
from vaerun.run.evaluate.evaluator import Evaluator
from vaerun.run.evaluate.samples import sample_quality, traversal_pictures
from vaerun.run.preflight import make_refinement
from vaerun.signals import ShutdownSignal

BATCH = 500  # images at a time where no samples multiply them
COLLAPSE_KL = 0.1  # nats of KL(q || p)
MAX_UNRELIABLE_SHARE = 0.05  # share of images whose k-hat may be above its limit before it is told


def evaluate_likelihood(
    model: LatentModel, data: ImageData, settings: EvaluationSettings, *, seed: int, stop: ShutdownSignal
) -> EvaluationResults:
    """Evaluate the first `settings.images` images of `settings.split`, in nats per image.

    Arguments:
        model: in evaluation mode.
        data: whose splits are used; the linear probe is fitted to its training split.
        settings: what to do.
        seed: of all noise.
        stop: looked at between pieces of work.
    """
    return LikelihoodEvaluator(model, data, settings, seed, stop).run()


class LikelihoodEvaluator(Evaluator[LatentModel]):
    """One evaluation of a model with a likelihood (or of a plain autoencoder)."""

    def run(self) -> EvaluationResults:
        s = self.settings
        if self.model.has_density:
            self.importance()
        else:
            errors = self.reconstruction_error()
            self.results.add_mean("reconstruction_error", errors)
            self.results.diverged = None if bool(errors.isfinite().all()) else "reconstruction_error"
        for wanted, piece in ((s.ais, self.annealed), (s.bdmc, self.bidirectional), (s.gaps, self.gaps)):
            if wanted:
                piece()
        if (s.latent and self.model.has_density) or s.probe or s.arrays:
            statistics = latent_statistics(
                self.model,
                self.split,
                seed=self.seed,
                images=self.images,
                batch=BATCH,
                monitor=self.monitor,
            )
            if s.latent and self.model.has_density:
                self.latent(statistics)
            if s.probe:
                self.probe(statistics)
            if s.arrays:
                self.arrays(statistics)
        if s.gradient_noise:
            self.gradient_noise()
        if s.quality or s.inception_weights is not None:
            sample_quality(self.model, self.data, s, self.results, seed=self.seed, monitor=self.monitor)
        traversal_pictures(self.model, self.data, s, self.results)
        return self.results

    def importance(self) -> None:
        found, s = self.results, self.settings
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
        tail = values.pop("pareto_k")
        for name, value in values.items():
            found.add_mean(name, value)
        found.per_image["pareto_k"] = tail
        if ppca.is_linear_gaussian(self.model):
            batches = self.split.batches(BATCH, self.images)
            exact = [ppca.exact_log_likelihood(self.model, b.x) + b.log_det.cpu() for b in batches]
            found.add_mean("log_likelihood_exact", torch.cat(exact))
        if self.data.transform.dequantize:
            found.add_mean("bits_per_dimension", 8 - values["log_likelihood"] / (self.data.dimensions * math.log(2)))
        share = unreliable_share(tail)
        if not math.isnan(share):  # else too few samples to say
            found.metrics["pareto_k_unreliable"] = share
        if share > MAX_UNRELIABLE_SHARE:
            other = f"{self.split.name}/ais" if s.ais else "more evaluation.samples or evaluation.ais=true"
            found.warnings.append(
                f"{self.split.name}/log_likelihood is not reliable for {share:.0%} of the images (Pareto k-hat above "
                f"{PARETO_K_LIMIT}: q misses part of the posterior); compare with {other}"
            )
        found.diverged = next((n for n in DENSITY_METRICS if not bool(torch.isfinite(values[n]).all())), None)

    def reconstruction_error(self) -> Tensor:
        """|x - E[x | z]|^2 at the encoder's z, [N]: a plain autoencoder's only number."""
        errors = []
        with torch.no_grad():
            for batch in self.split.batches(BATCH, self.images):
                c = batch.c if self.model.classes else None
                z = self.model.infer(self.model.joint(batch.x, c)).centre
                errors.append((batch.x - self.model.decode_mean(z, c)).flatten(1).square().sum(1).cpu().double())
        return torch.cat(errors)

    def annealed(self) -> None:
        ais = self.annealed_importance_sampling(self.model)
        # On the same images, so that the two can be compared.
        self.results.add_mean("ais_minus_is", ais - self.results.per_image["log_likelihood"][: len(ais)])

    def bidirectional(self) -> None:
        self.bidirectional_monte_carlo(self.model)

    def gaps(self) -> None:
        s, found = self.settings, self.results
        n = min(self.images, s.gap.images)
        with self.monitor.task(f"inference gaps of {self.split.name}", n) as task:
            values = inference_gaps(
                self.model,
                self.split,
                make_refinement(s),
                importance_samples=s.samples,
                elbo_samples=s.samples,
                seed=self.seed,
                images=n,
                monitor=task,
            )
        tail = values.pop("gap_pareto_k")
        found.per_image["gap_pareto_k"] = tail
        if not math.isnan(share := unreliable_share(tail)):
            found.metrics["gap_pareto_k_unreliable"] = share
        for name, value in values.items():
            found.add_mean(name if name.startswith("gap_") else f"gap_{name}", value.double())
        unfinished = unconverged_share(values["gap_converged"])
        if unfinished:
            found.warnings.append(
                f"{unfinished:.0%} of the images were still gaining at evaluation.gap.max_steps={s.gap.max_steps}: "
                "their amortisation gap is at least what is given, their approximation gap at most"
            )
        parts = {part: float(values[f"gap_{part}"].mean()) for part in ("approximation", "amortisation")}
        title = f"Inference gap, mean over {n} {self.split.name} images"
        found.pictures["gaps"] = bar_chart(
            {"log p(x) - ELBO": parts}, ylabel="nats per image", title=title, stacked=True
        )

    def latent(self, statistics: LatentStatistics) -> None:
        found = self.results
        found.details["kl_by_dimension"] = statistics.kl.tolist()
        found.pictures |= latent_pictures(statistics)
        lost = int((~statistics.kl.isfinite()).sum())
        if lost:
            found.warnings.append(
                f"kl_by_dimension is not finite for {lost} of {len(statistics.kl)} latent dimensions: a variance of q "
                "there is 0 or infinite in single precision"
            )
        if len(statistics.means) < 2:
            return  # a single image varies in nothing
        found.metrics["active_units"] = float(statistics.active_units)
        kl = found.metrics["kl"]  # None: not finite
        if not statistics.active_units and kl is not None and kl < COLLAPSE_KL:
            found.warnings.append(
                f"posterior collapse: q hardly differs from the prior on {self.split.name} (no active unit, KL below "
                f"{COLLAPSE_KL} nats): the decoder ignores z"
            )

    def probe(self, statistics: LatentStatistics) -> None:
        monitor = self.monitor.without_warnings()
        probe = probe_latents(self.model, self.data.train, statistics, seed=self.seed, monitor=monitor)
        self.results.metrics |= {"probe_accuracy": probe.accuracy, "probe_majority": probe.baseline}
        if probe.warning:
            self.results.warnings.append(f"linear probe: {probe.warning}")

    def arrays(self, statistics: LatentStatistics) -> None:
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

    def gradient_noise(self) -> None:
        noise = self.settings.noise
        batch = self.split.batch(0, min(noise.images, len(self.split)))
        names = estimators_by_name(noise.estimators)
        with self.monitor.task("gradient noise", len(names), unit="estimators") as task:
            found = gradient_noise(
                self.model,
                batch.x,
                batch.c if self.model.classes else None,
                names,
                samples=noise.samples,
                draws=noise.draws,
                seed=self.seed,
                monitor=task,
            )
        title = (
            f"Gradient of the mean over {len(batch.x)} {self.split.name} images, K={noise.samples}, {noise.draws} draws"
        )
        self.results.texts.append(f"{title}\n{format_table(found)}")
        measured = {name: groups for name, groups in found.items() if not isinstance(groups, str)}
        for name, groups in measured.items():
            for group, one in groups.items():
                for what in ("variance", "variance_error", "norm", "snr"):
                    value = getattr(one, what)
                    self.results.metrics[f"gradient_noise/{name}/{group}/{what}"] = (
                        value if math.isfinite(value) else None
                    )
        for what, ylabel in (("variance", "variance, mean over parameters"), ("snr", "signal-to-noise ratio")):
            bars = {
                name: {group: getattr(one, what) for group, one in groups.items()} for name, groups in measured.items()
            }
            if bars:
                errors = None
                if what == "variance":
                    errors = {
                        name: {g: one.variance_error for g, one in groups.items()} for name, groups in measured.items()
                    }
                self.results.pictures[f"gradient_{what}"] = bar_chart(
                    bars, ylabel=ylabel, title=title, log=True, errors=errors
                )
