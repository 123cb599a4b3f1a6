"""What each number of a record is, in words: no number is printed without them."""

from __future__ import annotations

from typing import Any

from vaerun.evaluation.samples.sample_validation import DIVERSITY_IMAGES
from vaerun.text import format_fixed

DIGITS = {"active_units": 0, "bits_per_dimension": 4, "probe_accuracy": 4, "probe_majority": 4}
DIGITS |= {"diversity": 3, "mode_collapse": 0, "classifier_frechet_distance": 3, "inception_frechet_distance": 3}
DIGITS |= {"label_agreement": 4, "precision": 4, "recall": 4, "density": 4, "coverage": 4}
DIGITS |= {"observation_variance": 5, "parzen_variance": 5}
DIGITS |= {"pareto_k_unreliable": 4, "gap_pareto_k_unreliable": 4}  # else 2


def metric_descriptions(protocol: dict[str, Any]) -> dict[str, str]:
    """Metric (without its split) -> what it is, for a record's or an evaluation's protocol."""
    if protocol.get("family") == "adversarial":
        return _adversarial(protocol)
    k = protocol.get("importance_samples")
    px, pxz, q, pz = "log p(x)", "log p(x|z)", "q(z|x)", "p(z)"
    if protocol.get("conditional"):
        px, pxz, q, pz = "log p(x|label)", "log p(x|z,label)", "q(z|x,label)", "p(z|label)"
    found = {
        "elbo": f"ELBO, Monte Carlo over the same {k} samples",
        "kl": f"KL({q} || {pz}), Monte Carlo over the same samples",
        "reconstruction": f"E_q {pxz}",
        "log_likelihood": f"importance-weighted {px}, K={k}: a lower bound in expectation",
        "log_likelihood_exact": "exact log p(x) of this linear-Gaussian model",
        "bits_per_dimension": f"bits: 8 - {px} / (D log 2)",
        "effective_sample_size": f"effective samples of the {k}, mean over images",
        "pareto_k_unreliable": "share of images whose Pareto k-hat is above 0.7: their log-likelihood is not reliable",
        "reconstruction_error": "|x - E[x|z]|^2 at the encoder's z, summed over pixels: no likelihood",
        "active_units": "latent dimensions whose posterior mean varies over images by more than 0.01 (variance)",
        "probe_accuracy": "accuracy of a linear classifier on posterior means, fitted to the training split",
        "probe_majority": "accuracy of always answering the training split's most frequent label",
    }
    annealing, gap = protocol.get("annealing"), protocol.get("gap")
    found |= _generated(protocol)
    if annealing is not None:
        found |= _annealing(annealing, px)
        found["ais_minus_is"] = "the same images: annealed minus plain importance sampling"
    if gap is not None:
        found |= {
            "gap_inference": f"{px} - ELBO(q), {gap['images']} images; log p(x) by IS with q* as proposal, K={k}",
            "gap_approximation": "log p(x) - ELBO(q*), q* of the same family optimised for each image",
            "gap_amortisation": "ELBO(q*) - ELBO(q)",
            "gap_log_likelihood": "log p(x) by importance sampling with q* as the proposal",
            "gap_elbo": "ELBO(q) of these images",
            "gap_elbo_optimal": "ELBO(q*) of these images",
            "gap_pareto_k_unreliable": "share of images whose k-hat is above 0.7 with q* as the proposal",
            "gap_steps": "optimisation steps, mean over images",
            "gap_converged": f"share whose ELBO had stopped rising before step {gap['max_steps']}",
        }
    return found


def _annealing(annealing: dict[str, Any], px: str) -> dict[str, str]:
    how = f"{annealing['temperatures']} temperatures, {annealing['chains']} chains, {annealing['images']} images"
    return {
        "ais": f"annealed importance sampling of {px}, {how}: a lower bound in expectation",
        "ais_ess": f"effective chains of the {annealing['chains']}, mean over images",
        "ais_acceptance": "of HMC, mean over images",
        "bdmc_lower": f"{px} of images drawn from the model, {how}: at least this in expectation",
        "bdmc_upper": "the same images: at most this in expectation",
        "bdmc_gap": "upper minus lower: bounds the error of both",
        "bdmc_acceptance_forward": "of HMC, from prior to posterior",
        "bdmc_acceptance_reverse": "of HMC, from posterior to prior",
    }


def _generated(protocol: dict[str, Any]) -> dict[str, str]:
    """What is measured of generated images (of a likelihood model: E[x|z] at z from the prior)."""
    generated = protocol.get("generated")
    if generated is None:
        return {}
    n, k = generated["samples"], generated["neighbours"]
    made = "generated" if protocol.get("family") == "adversarial" else "decoded (E[x|z], z from the prior)"
    return {
        "diversity": f"mean distance between two {made} images over that between two real ones (pixels), "
        f"{min(n, DIVERSITY_IMAGES)} of each",
        "classifier_frechet_distance": f"Frechet distance, {n} {made} and real images, in features of vaerun's own "
        "classifier of this data set: not the Inception FID",
        "inception_frechet_distance": f"Inception FID, {n} {made} and real images (only with the published weights: "
        "details.inception of result.json)",
        "precision": f"share of generated images near a real one, {k} neighbours, the same features",
        "recall": "share of real images near a generated one",
        "density": "generated images around a real one, over those expected; may exceed 1",
        "coverage": "share of real images with a generated one nearby",
        "label_agreement": f"share of {made} images that the same classifier gives the label they were made for",
    }


def _adversarial(protocol: dict[str, Any]) -> dict[str, str]:
    found = _generated(protocol)
    found["mode_collapse"] = f"1: diversity is below {protocol.get('diversity_threshold')}"
    for i in range(1, 1 + protocol.get("categorical_codes", 0)):
        found[f"categorical_{i}_accuracy"] = f"accuracy of Q's code {i} against labels under the best matching"
        found[f"categorical_{i}_baseline"] = "the same for a code that is independent of the label"
    found |= {
        "probe_accuracy": "accuracy of a linear classifier on the discriminator's features, fitted to training images",
        "probe_majority": "accuracy of always answering the training split's most frequent label",
        "observation_variance": "s2 of the observation model N(G(z), s2 I), pixels in [0, 1], by validation images",
    }
    if protocol.get("observation") is None:
        found["observation_variance"] = "s2 of the observation model N(G(z), s2 I), pixels in [0, 1], as given"
    if protocol.get("annealing") is not None:
        px = "log p(x|label)" if protocol.get("conditional") else "log p(x)"
        found |= _annealing(protocol["annealing"], f"{px} under N(G(z), s2 I) (nats)")
    found |= {
        "parzen_log_likelihood": f"Parzen window on {protocol.get('parzen_samples')} generated images, nats: KNOWN TO "
        "MISLEAD, see the warning",
        "parzen_variance": "of the Parzen window, chosen on validation images",
    }
    return found


def metric_rows(values: dict[str, float | None], protocol: dict[str, Any], prefix: str) -> list[tuple[str, str, str]]:
    """(name, number, words) of the metrics PREFIX/NAME, in the order of the words."""
    found = []
    for name, text in metric_descriptions(protocol).items():
        value, error = values.get(f"{prefix}/{name}"), values.get(f"{prefix}/{name}_se")
        if value is None:
            continue
        digits = DIGITS.get(name, 4 if name.startswith("categorical_") else 2)
        number = format_fixed(value, digits) + (f" ± {format_fixed(error, digits)}" if error is not None else "")
        found.append((f"{prefix}/{name}", number, text))
    return found


def align_rows(rows: list[tuple[str, str, str]]) -> list[str]:
    """Rows in columns."""
    first, second = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    return [f"{name:<{max(first, 26)}} {number:>{second}}  {text}" for name, number, text in rows]
