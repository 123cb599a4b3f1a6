"""Captions: what the numbers of a table mean, according to the protocol of its runs."""

from __future__ import annotations

from collections.abc import Sequence

from vaerun.report.listing import pixel_space
from vaerun.report.protocol import common_value, is_adaptive
from vaerun.report.runs import RunSummary

LIKELIHOOD_METRIC, ADVERSARIAL_METRIC = "test/log_likelihood", "test/classifier_frechet_distance"
ADAPTIVE_METRIC, POSTERIOR_GAP = "test/amis", "test/gap_posterior"
IN_NATS = ("log_likelihood", "elbo", "kl", "reconstruction", "ais", "amis", "iwae", "renyi", "bdmc", "gap_")
WITHOUT_UNIT = (
    "accept",
    "pareto_k",
    "_ess",
    "_steps",
    "_converged",
    "_starts",
    "_modes",
    "_rounds",
    "_fallback",
    "gap_from",
)
HIGHER = ("log_likelihood", "elbo", "iwae", "ais", "recall", "precision", "accuracy", "coverage")
LOWER = ("gap_inference", "gap_posterior", "amis_gap", "reconstruction_error")
LOWER_ENDINGS = ("bits_per_dimension", "frechet_distance")


def _common(runs: Sequence[RunSummary], key: str, default: str) -> str:
    return common_value(runs, lambda run: run.section("protocol").get(key, default))


def unit(metric: str, runs: Sequence[RunSummary]) -> str:
    """The metric's unit; '' if it has none."""
    name = metric.rpartition("/")[2]
    if name.endswith("bits_per_dimension"):
        return "bits per dimension"
    if name == "reconstruction_error" or (
        any(part in name for part in IN_NATS) and not any(part in name for part in WITHOUT_UNIT)
    ):
        return _common(runs, "units", "units not recorded")
    return ""


def direction(metric: str) -> str:
    """Whether higher or lower is better; '' if unknown."""
    name = metric.rpartition("/")[2]
    if name.endswith(("_se", "_minus_is")) or any(part in name for part in WITHOUT_UNIT):
        return ""
    if name in LOWER or name.endswith(LOWER_ENDINGS):
        return "lower is better"
    if name == "amis":
        return "higher is better"
    return "higher is better" if any(part in name for part in HIGHER) else ""


def samples(metric: str, runs: Sequence[RunSummary]) -> str:
    """K, the importance samples that the metric is estimated with."""
    return _common(runs, "amis.samples" if is_adaptive(metric) else "importance_samples", "not recorded")


def evaluated_images(metric: str, runs: Sequence[RunSummary]) -> tuple[str, str]:
    """(number, split) of the images that the metric averages over or compares with."""
    if metric.startswith("val/"):
        return _common(runs, "images.validation", "?"), "validation"
    split = _common(runs, "evaluated_split", "test")
    return _common(runs, "amis.images" if is_adaptive(metric) else "evaluated_images", "?"), split


def title(metric: str, runs: Sequence[RunSummary]) -> str:
    """The metric in a few words, for charts."""
    return {
        LIKELIHOOD_METRIC: f"as published: importance sampling with q, K={samples(metric, runs)}",
        ADAPTIVE_METRIC: "by adaptive importance sampling (does not depend on q)",
        POSTERIOR_GAP: "KL(q ‖ posterior): compares inference, not models",
    }.get(metric, metric)


def describe(metric: str, runs: Sequence[RunSummary]) -> str:
    """The metric, its images, data, likelihood, unit and direction; `runs`: those that have it."""
    name = metric.rpartition("/")[2]
    variables = common_value(runs, _variables)
    k = samples(metric, runs)
    meaning = {
        "log_likelihood": (
            f"log p({variables}) as published: importance sampling with q, K={k}, a lower bound in expectation that "
            "depends on the quality of q; compares with published numbers, whereas test/amis compares models"
        ),
        "amis": (
            f"log p({variables}) by adaptive importance sampling, K={k}, a lower bound in expectation that does not "
            "depend on q; this number compares models"
        ),
        "gap_posterior": (
            f"mean KL(q ‖ posterior) = log p({variables}) by adaptive importance sampling - ELBO; compares inference, "
            "not models"
        ),
        "elbo": "the ELBO, one sample" if metric.startswith("val/") else f"the ELBO, K={k} samples",
        "classifier_frechet_distance": (
            f"Frechet distance of {_common(runs, 'generated.samples', '?')} generated "
            "images in the features of vaerun's own classifier (not the Inception FID)"
        ),
    }.get(name)
    count, split = evaluated_images(metric, runs)
    first = "the first " if is_adaptive(metric) else ""
    data = common_value(runs, lambda run: run.result.get("data", "?"))
    pixels = common_value(runs, _pixel_space)
    density = common_value(runs, lambda run: run.section("protocol").get("likelihood") or "no")
    parts = [f"{metric}: {meaning}" if meaning else metric]
    parts += [f"{first}{count} {split} images of {data} ({pixels} pixels)"]
    parts += [f"{density} likelihood", unit(metric, runs), direction(metric)]
    return "; ".join(part for part in parts if part)


def _pixel_space(run: RunSummary) -> str:
    protocol = run.section("protocol")
    return pixel_space(protocol) if {"logit", "dequantize", "binarize"} <= protocol.keys() else "not recorded"


def _variables(run: RunSummary) -> str:
    return "x given its label" if run.section("protocol").get("conditional") else "x"
