"""DRAW's inference (Gregor et al. 2015): each z_t is inferred from the image and what the canvas still lacks.

q(z_t | x, z_<t) = N(m(h_enc_t), diag v(h_enc_t)), where h_enc_t reads the image x and the error image
x - E[x | c_{t-1}] through a window placed by h_dec_{t-1}. The canvas c_{t-1} and h_dec_{t-1} are the state of the
model's decoder after z_1 ... z_{t-1}, so q depends on the decoder's parameters, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaerun.distributions import RecurrentNormal, detached_module
from vaerun.errors import InputError
from vaerun.models import Joint
from vaerun.nets.draw import DecoderState, DrawDecoder, DrawEncoder, EncoderState, dim_per_step
from vaerun.nets.init import head

State = tuple[EncoderState, DecoderState]


class DrawRecurrence:
    """The recurrence of q: encoder, heads and decoder, for one batch.

    Arguments:
        encoder: reads the image.
        mean, log_variance: heads, from the encoder's h [..., hidden] to [..., n].
        joint: image, label, and the decoder that writes; raises InputError unless that is a DrawDecoder.
    """

    def __init__(self, encoder: DrawEncoder, mean: nn.Linear, log_variance: nn.Linear, joint: Joint) -> None:
        if not isinstance(joint.decoder, DrawDecoder):
            raise InputError(f"model=draw needs network=draw: {type(joint.decoder).__name__} is not a DRAW decoder")
        self.encoder, self.mean, self.log_variance = encoder, mean, log_variance
        self.joint, self.decoder = joint, joint.decoder

    def initial(self, *rows: int) -> State:
        return self.encoder.initial(*rows), self.decoder.initial(*rows)

    def parameters(self, state: State) -> tuple[Tensor, Tensor, State]:
        reader, writer = state
        joint = self.joint
        error = joint.x - joint.likelihood.mean(writer.canvas + joint.offset)
        reader = self.encoder.advance(reader, joint.inputs, error, writer.h, joint.c)
        return self.mean(reader.h), self.log_variance(reader.h), (reader, writer)

    def advance(self, state: State, z: Tensor) -> State:
        reader, writer = state
        return reader, self.decoder.advance(writer, z, self.joint.c)

    def detach(self) -> DrawRecurrence:
        encoder, mean, log_variance = (detached_module(m) for m in (self.encoder, self.mean, self.log_variance))
        return DrawRecurrence(encoder, mean, log_variance, self.joint.detach())  # type: ignore[arg-type]


class Recurrent(nn.Module):
    """q(z | x, c) = prod_t N(z_t; m_t, diag v_t), (m_t, v_t) from x, c and z_<t.

    Arguments:
        encoder: a DrawEncoder; raises InputError for any other.
        latent_dim: d, a multiple of `steps`; raises InputError otherwise.
        steps: T, equal to the decoder's.
    """

    def __init__(self, encoder: nn.Module | None, latent_dim: int, *, steps: int) -> None:
        super().__init__()
        if not isinstance(encoder, DrawEncoder):
            name = "null" if encoder is None else type(encoder).__name__
            raise InputError(f"model=draw needs network=draw: {name} is not a DRAW encoder")
        self.encoder, self.steps, self.step_dim = encoder, steps, dim_per_step(latent_dim, steps)
        self.mean, self.log_variance = (head(encoder.features, self.step_dim) for _ in range(2))

    def forward(self, joint: Joint) -> RecurrentNormal:
        recurrence = DrawRecurrence(self.encoder, self.mean, self.log_variance, joint)
        decoder = recurrence.decoder
        if decoder.steps != self.steps:
            raise InputError(
                f"model.inference.steps={self.steps} must be model.decoder.steps={decoder.steps}: "
                "set only model.decoder.steps"
            )
        if decoder.hidden != self.encoder.decoder_hidden:
            raise InputError(
                f"model.encoder.decoder_hidden={self.encoder.decoder_hidden} must be "
                f"model.decoder.hidden={decoder.hidden}: set only model.decoder.hidden"
            )
        mean_shift, log_variance_shift = torch.zeros(
            2, len(joint.x), self.steps, self.step_dim, dtype=joint.x.dtype, device=joint.x.device
        )
        return RecurrentNormal(recurrence, mean_shift, log_variance_shift)
