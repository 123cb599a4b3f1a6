"""The objective of adversarial models: two phases, discriminator and generator.

The discriminator phase updates the trunk, its head and, with codes, Q (on generated images, whose codes are known); the
generator phase updates the generator alone, through a frozen discriminator and Q. With codes, both add -lambda L_I to
their adversarial loss (Chen et al. 2016, eq. 6). A network that does not train in a phase is a view with detached
parameters whose batch normalisation uses the batch's statistics without updating the running ones, and whose spectral
norms take no power iteration: the phase leaves no trace in it.

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
    """lambda of the mutual information for each kind of code; 0 ignores it."""

    categorical: float = 1.0
    continuous: float = 1.0


def frozen_view(module: nn.Module) -> nn.Module:
    """A view of a module that gradients flow through, with no trainable parameter and no state that changes."""
    view = detached_module(module)
    for child in view.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            # In training mode it then uses the batch's statistics without updating the running ones.
            child.track_running_stats = child.track_running_stats and not child.training
        elif isinstance(child, ParametrizationList):
            for parametrization in child.children():
                parametrization.training = False
    return view


class Adversarial(nn.Module):
    """Discriminator against generator.

    Arguments:
        model: to train.
        estimator: the losses.
        discriminator_steps: k, discriminator updates per generator update.
        r1: gamma of the gradient penalty; 0: none.
        information: weights of the codes' mutual information.
        decay: of the generator's moving average, if the model has one. Step t + 1 uses min(decay, (1 + t) / (10 + t)),
            so that the initial parameters are soon forgotten.
        winning_steps: consecutive steps without a single discriminator error, on real or generated images, after which
            the discriminator counts as having won.

    Raises InputError for r1 with batch normalisation in the discriminator.
    """

    batch_coupling: str | None = None  # batch normalisation couples the batch, too, but is a setting of the networks

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
                "estimator.r1 penalises the gradient of each image, but batch normalisation couples the images: set "
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
        self.register_buffer("won", torch.zeros((), dtype=torch.int64))  # consecutive steps up to now
        self.register_buffer("longest", torch.zeros((), dtype=torch.int64))  # longest streak since the last diagnostics
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
        inputs, code = self.model.generator_inputs(noise)
        with torch.no_grad():
            fake = frozen_view(self.model.generator)(inputs, c)
        # The penalty needs a gradient even if the caller does not.
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
        correct = {"accuracy_real": real_logit > 0, "accuracy_fake": fake_logit < 0}
        if self.training:  # the smoke test before training does not count
            flawless = torch.stack([v.all() for v in correct.values()]).all()
            self._flawless = flawless if self._flawless is None else self._flawless & flawless  # in all k updates
        return loss, metrics | {name: v.to(loss.dtype) for name, v in correct.items()}

    def generator_loss(self, c: Tensor | None, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss and -lambda L_I, [B] nats.

        Metrics: generator_loss (without L_I); with codes, mutual_information and code_entropy (L_I of the categorical
        codes and their entropy, its upper bound) and mutual_information_continuous (log Q + H with the differential
        entropy, which is not a bound).

        Arguments:
            c: [B, classes] or None.
            noise: [B, n].
        """
        inputs, code = self.model.generator_inputs(noise)
        fake = self.model.generator(inputs, c)
        logit, q = frozen_view(self.model.discriminator)(fake, c)
        value = self.estimator.generator(logit)
        weighted, metrics = self._information(q, code)
        return value - weighted, {"generator_loss": value.detach(), **metrics}

    def _information(self, q: Tensor | None, code: Tensor | None) -> tuple[Tensor | float, dict[str, Tensor]]:
        """lambda L_I [B] summed over all codes, and its metrics."""
        codes = self.model.codes
        if codes is None or q is None or code is None:
            return 0.0, {}
        information, entropy = codes.information(q, code), codes.entropies
        weighted = torch.stack([getattr(self.information, kind) * value for kind, value in information.items()]).sum(0)
        metrics = {}
        for kind, value in information.items():
            name = "mutual_information" if kind == "categorical" else f"mutual_information_{kind}"
            metrics[name] = value.detach()
            if kind == "categorical":
                metrics["code_entropy"] = torch.full_like(value, entropy[kind])
        return weighted, metrics

    def sync_flags(self, every: Callable[[Tensor], Tensor]) -> None:
        """A step is flawless only if it is flawless in every process."""
        if self._flawless is not None:
            self._flawless = every(self._flawless)

    def after_step(self, step: int | Tensor) -> None:
        """Update the generator's moving average and the discriminator's streak of flawless steps."""
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
                if value.is_floating_point():  # running statistics included: they belong with averaged weights
                    value.lerp_(current[name], 1 - decay)
                else:
                    value.copy_(current[name])

    def diagnostics(self) -> Diagnostics:
        """Whether the discriminator has won since the last call."""
        won = int(torch.maximum(self.longest, self.won)) >= self.winning_steps
        self.longest.zero_()
        line = (
            f"the discriminator has made no mistake for {self.winning_steps} steps, so the generator learns little: "
            "lower trainer.discriminator_learning_rate, set estimator.label_smoothing=0.1, or, without batch norm, "
            "model.discriminator.spectral_norm=true or estimator.r1=1"
        )
        return Diagnostics({"discriminator_won": float(won)}, [line] if won else [])
