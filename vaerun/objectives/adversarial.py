"""Adversarial models: two phases, discriminator and generator.

The discriminator phase updates the trunk, its head and, with codes, Q (on generated images, whose codes are known); the
generator phase updates the generator alone, through discriminator and Q held fixed. With codes both descend
-lambda L_I beside their adversarial loss (Chen et al. 2016, eq. 6). Whichever network does not train in a phase is a
view with its parameters held, whose batch normalisation uses the batch's statistics without remembering them and whose
spectral norms are not estimated further: nothing of the phase leaks into it.

R1 (Mescheder et al. 2018, eq. 9): gamma / 2 times |d logit / d x|^2 on real images, pixels in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from vaerun.data.dataset import Batch
from vaerun.distributions import detached_module
from vaerun.errors import InputError
from vaerun.estimators import AdversarialLoss
from vaerun.models import AdversarialModel
from vaerun.objectives.base import Diagnostics, Phase
from vaerun.randomness import batch_normal


@dataclass(frozen=True)
class InformationWeights:
    """lambda of the mutual information by kind of code; 0: that kind is ignored."""

    categorical: float = 1.0
    continuous: float = 1.0


def frozen_view(module: nn.Module) -> nn.Module:
    """A view of a module that gradients pass through and that remembers nothing of what it sees."""
    view = detached_module(module)
    for part in view.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            # In training mode it then uses the batch's own statistics and leaves the running ones alone.
            part.track_running_stats = part.track_running_stats and not part.training
        elif isinstance(part, ParametrizationList):
            for parametrization in part.children():
                parametrization.training = False
    return view


class Adversarial(nn.Module):
    """Discriminator against generator.

    Arguments:
        model: to train.
        estimator: the losses.
        discriminator_steps: k, updates of the discriminator for one of the generator.
        r1: gamma of the gradient penalty; 0: none.
        information: weights of the codes' mutual information.
        decay: of the generator's moving average (where the model has one). After t steps the next has min(decay,
            (1 + t) / (10 + t)), so that the average is not held back by the initial parameters.
        winning_steps: steps in a row without a single mistake of the discriminator's, real and generated, after which
            it counts as having won.

    Raises InputError for options that do not go together.
    """

    batch_coupling: str | None = None  # but for batch normalisation, which is no setting of the objective's

    def __init__(
        self,
        model: AdversarialModel,
        estimator: AdversarialLoss,
        *,
        discriminator_steps: int = 1,
        r1: float = 0.0,
        information: InformationWeights | None = None,
        decay: float = 0.999,
        winning_steps: int = 500,
    ) -> None:
        super().__init__()
        if r1 and getattr(model.discriminator.trunk, "batch_norm", False):
            raise InputError(
                "estimator.r1 penalises each image's own gradient, and batch normalisation mixes the images: set "
                "model.discriminator.batch_norm=false"
            )
        self.model, self.estimator, self.r1 = model, estimator, r1
        self.information = information or InformationWeights()
        self.decay, self.winning_steps = decay, winning_steps
        self.phases = {
            "discriminator": Phase({"discriminator": list(model.discriminator.parameters())}, discriminator_steps),
            "generator": Phase({"generator": list(model.generator.parameters())}),
        }
        self.won: Tensor
        self.longest: Tensor
        self.register_buffer("won", torch.zeros((), dtype=torch.int64))  # steps in a row, up to now
        self.register_buffer("longest", torch.zeros((), dtype=torch.int64))  # since it was last looked at
        self._flawless: Tensor | None = None

    def loss(self, phase: str, step: int | Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """One phase's loss [B] nats and metrics [B], with noise from torch's global generator."""
        shape = len(batch.x), self.model.noise_dim
        noise = batch_normal(shape, 0, dtype=batch.x.dtype, device=batch.x.device)
        c = batch.c if self.model.classes else None
        if phase == "discriminator":
            return self.discriminator_loss(batch.x, c, noise)
        return self.generator_loss(c, noise)

    def discriminator_loss(self, x: Tensor, c: Tensor | None, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """-V (with smoothed targets), R1 and -lambda L_I, [B] nats.

        Metrics: discriminator_loss (-V with smoothed targets alone), accuracy_real, accuracy_fake, r1 (|gradient|^2).

        Arguments:
            x: real images [B, C, H, W] in [0, 1].
            c: [B, classes] or None.
            noise: [B, n] of the generated images.
        """
        given, code = self.model.generator_inputs(noise)
        with torch.no_grad():
            fake = frozen_view(self.model.generator)(given, c)
        # The penalty differentiates also where the caller wants a value only.
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.r1 > 0):
            real = (2 * x - 1).requires_grad_(self.r1 > 0)
            real_logit = self.model.discriminator(real, c)[0]
            fake_logit, q = self.model.discriminator(fake, c)
            value = self.estimator.discriminator(real_logit, fake_logit)
            loss = value - self._information(q, code)[0]
            metrics = {"discriminator_loss": value.detach()}
            if self.r1 > 0:
                (gradient,) = torch.autograd.grad(real_logit.sum(), real, create_graph=True)
                squared = gradient.flatten(1).square().sum(1)
                loss, metrics["r1"] = loss + self.r1 / 2 * squared, squared.detach()
        right = {"accuracy_real": real_logit > 0, "accuracy_fake": fake_logit < 0}
        if self.training:  # a trial before training counts for nothing
            flawless = torch.stack([v.all() for v in right.values()]).all()
            self._flawless = flawless if self._flawless is None else self._flawless & flawless  # of all k updates
        return loss, metrics | {name: v.to(loss.dtype) for name, v in right.items()}

    def generator_loss(self, c: Tensor | None, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss and -lambda L_I, [B] nats.

        Metrics: generator_loss (without L_I) and, with codes, mutual_information and code_entropy (the bound L_I for
        categorical codes and their entropy, which it cannot exceed) and mutual_information_continuous (log Q + H with
        the differential entropy: no bound).

        Arguments:
            c: [B, classes] or None.
            noise: [B, n].
        """
        given, code = self.model.generator_inputs(noise)
        fake = self.model.generator(given, c)
        logit, q = frozen_view(self.model.discriminator)(fake, c)
        value = self.estimator.generator(logit)
        weighted, metrics = self._information(q, code)
        return value - weighted, {"generator_loss": value.detach(), **metrics}

    def _information(self, q: Tensor | None, code: Tensor | None) -> tuple[Tensor | float, dict[str, Tensor]]:
        """lambda L_I [B] over all codes, and what to report of it."""
        codes = self.model.codes
        if codes is None or q is None or code is None:
            return 0.0, {}
        found, entropy = codes.information(q, code), codes.entropies
        weighted = torch.stack([getattr(self.information, kind) * value for kind, value in found.items()]).sum(0)
        metrics = {}
        for kind, value in found.items():
            name = "mutual_information" if kind == "categorical" else f"mutual_information_{kind}"
            metrics[name] = value.detach()
            if kind == "categorical":
                metrics["code_entropy"] = torch.full_like(value, entropy[kind])
        return weighted, metrics

    def sync_flags(self, every: Callable[[Tensor], Tensor]) -> None:
        """No mistake is one of no process's."""
        if self._flawless is not None:
            self._flawless = every(self._flawless)

    def after_step(self, step: int | Tensor) -> None:
        """Moves the generator's average on; counts the steps that the discriminator has won."""
        if self._flawless is not None:
            self.won.copy_((self.won + 1) * self._flawless)
            self.longest.copy_(torch.maximum(self.longest, self.won))
            self._flawless = None
        if self.model.average is None:
            return
        decay: float | Tensor
        if isinstance(step, Tensor):
            decay = ((1 + step) / (10 + step)).clamp(max=self.decay)
        else:
            decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            average, current = self.model.average.state_dict(), self.model.generator.state_dict()
            for name, value in average.items():
                if value.is_floating_point():  # running statistics too: they belong to averaged weights
                    value.lerp_(current[name], 1 - decay)
                else:
                    value.copy_(current[name])

    def diagnostics(self) -> Diagnostics:
        """Whether the discriminator has won since the last look."""
        won = int(torch.maximum(self.longest, self.won)) >= self.winning_steps
        self.longest.zero_()
        line = (
            f"the discriminator has made no mistake for {self.winning_steps} steps: the generator learns little from "
            "it; lower trainer.discriminator_learning_rate, or set estimator.label_smoothing=0.1, or "
            "model.discriminator.spectral_norm=true or estimator.r1=1 (both without batch norm)"
        )
        return Diagnostics({"discriminator_won": float(won)}, [line] if won else [])
