"""What each number of a record is, in words: no number is printed without them."""

from __future__ import annotations

from typing import Any

DIGITS = {"active_units": 0, "bits_per_dimension": 4, "probe_accuracy": 4, "probe_majority": 4}
DIGITS |= {"pareto_k_unreliable": 4, "gap_pareto_k_unreliable": 4}  # else 2


def words(protocol: dict[str, Any]) -> dict[str, str]:
    """Metric (without its split) -> what it is, for a record's or an evaluation's protocol."""
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
    if annealing is not None:
        how = f"{annealing['temperatures']} temperatures, {annealing['chains']} chains, {annealing['images']} images"
        found |= {
            "ais": f"annealed importance sampling of {px}, {how}: a lower bound in expectation",
            "ais_minus_is": "the same images: annealed minus plain importance sampling",
            "ais_ess": f"effective chains of the {annealing['chains']}, mean over images",
            "ais_acceptance": "of HMC, mean over images",
            "bdmc_lower": f"{px} of images drawn from the model, {how}: at least this in expectation",
            "bdmc_upper": "the same images: at most this in expectation",
            "bdmc_gap": "upper minus lower: bounds the error of both",
            "bdmc_acceptance_forward": "of HMC, from prior to posterior",
            "bdmc_acceptance_reverse": "of HMC, from posterior to prior",
        }
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


def rows(metrics: dict[str, float | None], protocol: dict[str, Any], prefix: str) -> list[tuple[str, str, str]]:
    """(name, number, words) of the metrics PREFIX/NAME, in the order of the words."""
    found = []
    for name, text in words(protocol).items():
        value, error = metrics.get(f"{prefix}/{name}"), metrics.get(f"{prefix}/{name}_se")
        if value is None:
            continue
        digits = DIGITS.get(name, 2)
        number = f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")
        found.append((f"{prefix}/{name}", number, text))
    return found


def lines(found: list[tuple[str, str, str]]) -> list[str]:
    """Rows in columns."""
    first, second = (max((len(row[i]) for row in found), default=0) for i in (0, 1))
    return [f"{name:<{max(first, 26)}} {number:>{second}}  {text}" for name, number, text in found]
