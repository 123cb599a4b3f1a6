"""Captions: what the numbers of a table mean, according to the protocol of its runs."""

from __future__ import annotations

from collections.abc import Sequence

from vaerun.report.listing import pixel_space
from vaerun.report.protocol import common_value
from vaerun.report.runs import RunSummary

LIKELIHOOD_METRIC, ADVERSARIAL_METRIC = "test/log_likelihood", "test/classifier_frechet_distance"
IN_NATS = ("log_likelihood", "elbo", "kl", "reconstruction", "ais", "iwae", "renyi", "bdmc", "gap_")
HIGHER = ("log_likelihood", "elbo", "iwae", "ais", "recall", "precision", "accuracy", "coverage")
LOWER = ("bits_per_dimension", "frechet_distance", "gap_inference", "reconstruction_error")


def _common(runs: Sequence[RunSummary], key: str, default: str) -> str:
    return common_value(runs, lambda run: run.section("protocol").get(key, default))


def unit(metric: str, runs: Sequence[RunSummary]) -> str:
    """The metric's unit; '' if it has none."""
    name = metric.rpartition("/")[2]
    if name == "bits_per_dimension":
        return "bits per dimension"
    if name == "reconstruction_error" or (any(part in name for part in IN_NATS) and "accept" not in name):
        return _common(runs, "units", "units not recorded")
    return ""


def direction(metric: str) -> str:
    """Whether higher or lower is better; '' if unknown."""
    name = metric.rpartition("/")[2]
    if name.endswith("_se"):
        return ""
    if name in LOWER or name.endswith("frechet_distance"):
        return "lower is better"
    return "higher is better" if any(part in name for part in HIGHER) else ""


def importance_samples(runs: Sequence[RunSummary]) -> str:
    """K of the importance-weighted log-likelihood."""
    return _common(runs, "importance_samples", "not recorded")


def evaluated_images(metric: str, runs: Sequence[RunSummary]) -> tuple[str, str]:
    """(number, split) of the images that the metric averages over or compares with."""
    if metric.startswith("val/"):
        return _common(runs, "images.validation", "?"), "validation"
    return _common(runs, "evaluated_images", "?"), _common(runs, "evaluated_split", "test")


def describe(metric: str, runs: Sequence[RunSummary]) -> str:
    """The metric, its images, data, likelihood, unit and direction; `runs`: those that have it."""
    name = metric.rpartition("/")[2]
    variables = common_value(runs, _variables)
    samples = importance_samples(runs)
    meaning = {
        "log_likelihood": f"importance-weighted log p({variables}), K={samples}: a lower bound in expectation",
        "elbo": "the ELBO, one sample" if metric.startswith("val/") else f"the ELBO, K={samples} samples",
        "classifier_frechet_distance": (
            f"Frechet distance of {_common(runs, 'generated.samples', '?')} generated "
            "images in the features of vaerun's own classifier (not the Inception FID)"
        ),
    }.get(name)
    count, split = evaluated_images(metric, runs)
    data = common_value(runs, lambda run: run.result.get("data", "?"))
    pixels = common_value(runs, _pixel_space)
    density = common_value(runs, lambda run: run.section("protocol").get("likelihood") or "no")
    parts = [f"{metric}: {meaning}" if meaning else metric, f"{count} {split} images of {data} ({pixels} pixels)"]
    parts += [f"{density} likelihood", unit(metric, runs), direction(metric)]
    return "; ".join(part for part in parts if part)


def _pixel_space(run: RunSummary) -> str:
    protocol = run.section("protocol")
    return pixel_space(protocol) if {"logit", "dequantize", "binarize"} <= protocol.keys() else "not recorded"


def _variables(run: RunSummary) -> str:
    return "x given its label" if run.section("protocol").get("conditional") else "x"
