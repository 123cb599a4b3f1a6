"""vaerun: train, evaluate and record deep latent-variable models.

run = vaerun.load_run("outputs/...")   # runs no code from the directory
joint = run.model.joint(x, c); q = run.model.infer(joint)
vaerun.log_likelihood(run.model, x, c, samples=5000)   # [B] nats
vaerun.marginal_likelihood(log_joint, start)   # of any differentiable model, with diagnostics
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vaerun.errors import InputError, Interrupted, RunError

if TYPE_CHECKING:
    from vaerun.config.plugins import trust
    from vaerun.evaluation import log_likelihood, marginal_likelihood
    from vaerun.run.load import load_run

__all__ = ["InputError", "Interrupted", "RunError", "load_run", "log_likelihood", "marginal_likelihood", "trust"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, and the command line must answer --help and signals before that.
    if name == "load_run":
        from vaerun.run.load import load_run

        return load_run
    if name == "log_likelihood":
        from vaerun.evaluation import log_likelihood

        return log_likelihood
    if name == "marginal_likelihood":
        from vaerun.evaluation import marginal_likelihood

        return marginal_likelihood
    if name == "trust":
        from vaerun.config.plugins import trust

        return trust
    raise AttributeError(f"module 'vaerun' has no attribute '{name}'")
