"""What a table's number is, in words, read off the runs' protocol."""

from __future__ import annotations

from collections.abc import Sequence

from vaerun.report.listing import pixels
from vaerun.report.protocol import common_value
from vaerun.report.runs import Run

LIKELIHOOD, ADVERSARIAL = "test/log_likelihood", "test/classifier_frechet_distance"
IN_NATS = ("log_likelihood", "elbo", "kl", "reconstruction", "ais", "iwae", "renyi", "bdmc", "gap_")
HIGHER = ("log_likelihood", "elbo", "iwae", "ais", "recall", "precision", "accuracy", "coverage")
LOWER = ("bits_per_dimension", "frechet_distance", "gap_inference", "reconstruction_error")


def unit(metric: str, runs: Sequence[Run]) -> str:
    """Of the metric; '' for one that has none."""
    name = metric.rpartition("/")[2]
    if name == "bits_per_dimension":
        return "bits per dimension"
    if name == "reconstruction_error" or (any(part in name for part in IN_NATS) and "accept" not in name):
        return common_value(runs, lambda run: run.section("protocol").get("units", "units not recorded"))
    return ""


def direction(metric: str) -> str:
    """Which way is better, '' where that is not known."""
    name = metric.rpartition("/")[2]
    if name.endswith("_se"):
        return ""
    if name in LOWER or name.endswith("frechet_distance"):
        return "lower is better"
    return "higher is better" if any(part in name for part in HIGHER) else ""


def importance_samples(runs: Sequence[Run]) -> str:
    """K of the importance-weighted log-likelihood."""
    return common_value(runs, lambda run: run.section("protocol").get("importance_samples", "not recorded"))


def evaluated_images(metric: str, runs: Sequence[Run]) -> tuple[str, str]:
    """(number, split) of the images that the metric is a mean over or is against."""
    if metric.startswith("val/"):
        return common_value(runs, lambda run: run.section("protocol").get("images.validation", "?")), "validation"
    count = common_value(runs, lambda run: run.section("protocol").get("evaluated_images", "?"))
    return count, common_value(runs, lambda run: run.section("protocol").get("evaluated_split", "test"))


def describe(metric: str, runs: Sequence[Run]) -> str:
    """The metric, its images, data, likelihood, unit and direction; `runs` are those with a number."""
    name = metric.rpartition("/")[2]
    given = common_value(runs, lambda run: "x given its label" if run.section("protocol").get("conditional") else "x")
    meaning = {
        "log_likelihood": f"importance-weighted log p({given}), K={importance_samples(runs)}: a lower bound in expectation",
        "elbo": "the ELBO, one sample"
        if metric.startswith("val/")
        else f"the ELBO, K={importance_samples(runs)} samples",
        "classifier_frechet_distance": (
            f"Frechet distance of {common_value(runs, lambda r: r.section('protocol').get('generated.samples', '?'))} generated "
            "images in the features of vaerun's own classifier (not the Inception FID)"
        ),
    }.get(name)
    count, split = evaluated_images(metric, runs)
    of = common_value(runs, lambda run: run.result.get("data", "?"))
    space = common_value(runs, _pixels)
    density = common_value(runs, lambda run: run.section("protocol").get("likelihood") or "no")
    parts = [f"{metric}: {meaning}" if meaning else metric, f"{count} {split} images of {of} ({space} pixels)"]
    parts += [f"{density} likelihood", unit(metric, runs), direction(metric)]
    return "; ".join(part for part in parts if part)


def _pixels(run: Run) -> str:
    kept = run.section("protocol")
    return pixels(kept) if {"logit", "dequantize", "binarize"} <= kept.keys() else "not recorded"
