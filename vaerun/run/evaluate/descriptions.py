"""Descriptions of the metrics, printed next to their values."""

from __future__ import annotations

from typing import Any

from vaerun.evaluation.samples.sample_validation import DIVERSITY_IMAGES
from vaerun.text import format_fixed

DIGITS = {"active_units": 0, "bits_per_dimension": 4, "probe_accuracy": 4, "probe_majority": 4}
DIGITS |= {"diversity": 3, "mode_collapse": 0, "classifier_frechet_distance": 3, "inception_frechet_distance": 3}
DIGITS |= {"label_agreement": 4, "precision": 4, "recall": 4, "density": 4, "coverage": 4}
DIGITS |= {"gap_from_mode": 4}
DIGITS |= {"observation_variance": 5, "parzen_variance": 5}
DIGITS |= {"pareto_k_unreliable": 4, "gap_pareto_k_unreliable": 4, "amis_pareto_k_unreliable": 4}
DIGITS |= {"amis_fallback": 4, "amis_bridged": 4, "amis_starts_disagree": 4, "amis_bits_per_dimension": 4}  # else 2


def metric_descriptions(protocol: dict[str, Any]) -> dict[str, str]:
    """Map metrics (without their split) to descriptions, for the protocol of a run or an evaluation."""
    if protocol.get("family") == "adversarial":
        return _adversarial(protocol)
    k = protocol.get("importance_samples")
    px, pxz, q, pz = "log p(x)", "log p(x|z)", "q(z|x)", "p(z)"
    if protocol.get("conditional"):
        px, pxz, q, pz = "log p(x|label)", "log p(x|z,label)", "q(z|x,label)", "p(z|label)"
    amis = protocol.get("amis")
    published = "" if amis is None else "; the published protocol, which depends on q: to compare models use amis"
    descriptions = {
        "elbo": f"ELBO, Monte Carlo over the same {k} samples",
        "kl": f"KL({q} || {pz}), Monte Carlo over the same samples",
        "reconstruction": f"E_q[{pxz}]",
        "log_likelihood": f"importance-weighted {px}, K={k}: a lower bound in expectation{published}",
        "log_likelihood_exact": "exact log p(x) of this linear-Gaussian model",
        "bits_per_dimension": f"bits: 8 - {px} / (D log 2), from log_likelihood",
        "effective_sample_size": f"effective sample size of K={k}, mean over images",
        "pareto_k_unreliable": "fraction of images with Pareto k-hat above 0.7: their log_likelihood is not reliable",
        **({} if amis is None else _adaptive(amis, px, "; does not depend on q and compares models")),
        "reconstruction_error": "|x - E[x|z]|^2 at the encoder's z, summed over pixels: not a likelihood",
        "active_units": "latent dimensions with a variance of the posterior mean over images above 0.01",
        "probe_accuracy": "accuracy of a linear classifier on posterior means, fitted to the training split",
        "probe_majority": "accuracy of always predicting the training split's most frequent label",
    }
    annealing, gap = protocol.get("annealing"), protocol.get("gap")
    descriptions |= _generated(protocol)
    if annealing is not None:
        descriptions |= _annealing(annealing, px)
        descriptions["ais_minus_is"] = "annealed minus plain importance sampling, same images"
    if gap is not None:
        source = f"importance sampling with q* as proposal, K={k}"
        if gap.get("log_likelihood", "").startswith("adaptive"):
            source = "adaptive importance sampling"
        starts = "q" if gap.get("starts", "q") == "q" else "q and from the best mode: the better of the two"
        descriptions |= {
            "gap_inference": f"{px} - ELBO(q), {gap['images']} images; {px} by {source}",
            "gap_approximation": f"{px} - ELBO(q*), q* of the same family optimised for each image from {starts}",
            "gap_amortisation": "ELBO(q*) - ELBO(q)",
            "gap_log_likelihood": f"{px} of these images by {source}",
            "gap_elbo": "ELBO(q) of these images",
            "gap_elbo_optimal": "ELBO(q*) of these images",
            "gap_elbo_optimal_from_q": "ELBO at the end of the search from q",
            "gap_elbo_optimal_from_mode": "ELBO at the end of the search from the best mode",
            "gap_from_mode": "fraction of images whose q* is that of the search from the mode, which ended higher",
            "gap_pareto_k_unreliable": "fraction of images with k-hat above 0.7, q* as the proposal",
            "gap_steps": "optimisation steps, mean over images",
            "gap_converged": f"fraction of images that converged before step {gap['max_steps']}",
        }
    return descriptions


def _adaptive(amis: dict[str, Any], px: str, use: str = "") -> dict[str, str]:
    images, samples = amis["images"], amis["samples"]
    return {
        "amis": f"adaptive importance sampling of {px}, {images} images, K={samples}: "
        f"a lower bound in expectation{use}",
        "amis_minus_is": "amis minus log_likelihood, same images: what importance sampling with q misses",
        "amis_bits_per_dimension": f"bits: 8 - {px} / (D log 2), from amis",
        "gap_posterior": "amis minus ELBO, same images: mean KL(q || posterior), the error of inference alone",
        "amis_ess": f"effective sample size of K={samples} or, for those of amis_bridged, its chains, mean over images",
        "amis_bridged": "fraction of images whose proposal's weights stayed unreliable, evaluated by annealing from it",
        "amis_pareto_k_unreliable": "fraction of images with k-hat above 0.7 under adaptive importance sampling; those "
        "with fewer than K/2 effective samples, too, are named in a warning",
        "amis_fallback": "fraction of images whose amis is that of annealed importance sampling instead",
        "amis_starts_disagree": "fraction of images where twice as many mode searches changed the evidence by over 0.5 "
        "nats: they got more",
        "amis_lower": f"{px} of {amis['simulated']} images drawn from the model: a lower bound in expectation",
        "amis_upper": "the same images: an upper bound in expectation",
        "amis_gap": "upper minus lower bound: limits the error of both",
    }


def _annealing(annealing: dict[str, Any], px: str) -> dict[str, str]:
    setup = f"{annealing['temperatures']} temperatures, {annealing['chains']} chains, {annealing['images']} images"
    return {
        "ais": f"annealed importance sampling of {px}, {setup}: a lower bound in expectation",
        "ais_ess": f"effective number of the {annealing['chains']} chains, mean over images",
        "ais_acceptance": "HMC acceptance, mean over images",
        "bdmc_lower": f"{px} of images drawn from the model, {setup}: a lower bound in expectation",
        "bdmc_upper": "the same images: an upper bound in expectation",
        "bdmc_gap": "upper minus lower bound: limits the error of both",
        "bdmc_acceptance_forward": "HMC acceptance from prior to posterior",
        "bdmc_acceptance_reverse": "HMC acceptance from posterior to prior",
    }


def _generated(protocol: dict[str, Any]) -> dict[str, str]:
    """Metrics of generated images (for a model with a likelihood: E[x|z] at z from the prior)."""
    generated = protocol.get("generated")
    if generated is None:
        return {}
    n, k = generated["samples"], generated["neighbours"]
    made = "generated" if protocol.get("family") == "adversarial" else "decoded (E[x|z], z from the prior)"
    return {
        "diversity": f"mean pixel distance between {made} images relative to real ones, "
        f"{min(n, DIVERSITY_IMAGES)} of each",
        "classifier_frechet_distance": f"Frechet distance, {n} {made} and real images, in features of vaerun's "
        "classifier of this data set: not the Inception FID",
        "inception_frechet_distance": f"Inception FID, {n} {made} and real images (only with the published weights: "
        "details.inception of result.json)",
        "precision": f"fraction of generated images near a real one, {k} neighbours, same features",
        "recall": "fraction of real images near a generated one",
        "density": "generated images near a real one, relative to the expected number; may exceed 1",
        "coverage": "fraction of real images with a generated one nearby",
        "label_agreement": f"fraction of {made} images that the same classifier assigns to their label",
    }


def _adversarial(protocol: dict[str, Any]) -> dict[str, str]:
    descriptions = _generated(protocol)
    descriptions["mode_collapse"] = f"1: diversity is below {protocol.get('diversity_threshold')}"
    for i in range(1, 1 + protocol.get("categorical_codes", 0)):
        descriptions[f"categorical_{i}_accuracy"] = f"accuracy of Q's code {i} against labels under the best matching"
        descriptions[f"categorical_{i}_baseline"] = "the same for a code that is independent of the label"
    descriptions |= {
        "probe_accuracy": "accuracy of a linear classifier on the discriminator's features, fitted to training images",
        "probe_majority": "accuracy of always predicting the training split's most frequent label",
        "observation_variance": "s2 of the observation model N(G(z), s2 I), pixels in [0, 1], from validation images",
    }
    if protocol.get("observation") is None:
        descriptions["observation_variance"] = "s2 of the observation model N(G(z), s2 I), pixels in [0, 1], fixed"
    px = "log p(x|label)" if protocol.get("conditional") else "log p(x)"
    if protocol.get("amis") is not None:
        descriptions |= _adaptive(protocol["amis"], f"{px} under N(G(z), s2 I) (nats)")
    if protocol.get("annealing") is not None:
        descriptions |= _annealing(protocol["annealing"], f"{px} under N(G(z), s2 I) (nats)")
    descriptions |= {
        "parzen_log_likelihood": f"Parzen window on {protocol.get('parzen_samples')} generated images, nats: KNOWN TO "
        "MISLEAD, see the warning",
        "parzen_variance": "variance of the Parzen window, from validation images",
    }
    return descriptions


def metric_rows(values: dict[str, float | None], protocol: dict[str, Any], prefix: str) -> list[tuple[str, str, str]]:
    """Rows (name, value, description) of the metrics PREFIX/NAME, in the order of the descriptions."""
    rows = []
    for name, text in metric_descriptions(protocol).items():
        value, error = values.get(f"{prefix}/{name}"), values.get(f"{prefix}/{name}_se")
        if value is None:
            continue
        digits = DIGITS.get(name, 4 if name.startswith("categorical_") else 2)
        number = format_fixed(value, digits) + (f" ± {format_fixed(error, digits)}" if error is not None else "")
        rows.append((f"{prefix}/{name}", number, text))
    return rows


def align_rows(rows: list[tuple[str, str, str]]) -> list[str]:
    """Format rows as aligned columns."""
    first, second = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    return [f"{name:<{max(first, 26)}} {number:>{second}}  {text}" for name, number, text in rows]
