"""DRAW's networks (Gregor et al. 2015): an image is written in T steps, and read again before each of them.

With LSTM states h, sigma(c) the mean image of canvas c, and a part z_t of the latent vector for each step,

    encoder:  h_enc_t = LSTM([read(x, x - sigma(c_{t-1}), h_dec_{t-1}), h_dec_{t-1}], h_enc_{t-1})      (eq. 3-5)
    decoder:  h_dec_t = LSTM(z_t, h_dec_{t-1}),   c_t = c_{t-1} + write(h_dec_t)                        (eq. 7-8)

and c_T is the likelihood's natural parameter. Reading and writing act on the whole image, or on a window of N x N
points placed by h_dec: two banks of N Gaussian filters, F_X [N, W] and F_Y [N, H], give the patch F_Y x F_X' and the
transposed map F_Y' w F_X (eq. 19-29). All operations support forward-mode autodiff (a fused LSTM cell does not), so the
decoder can be linearised like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaerun.errors import InputError
from vaerun.nets.init import append_context, check_integer, head


def check_window_size(key: str, value: int | None) -> int | None:
    """Return N, or None for the whole image; raises InputError for N below 2, where a window has no stride."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 2):
        raise InputError(f"{key} must be an integer of at least 2, or null for the whole image, got {value}")
    return None if value is None else check_integer(key, value, 2)


def dim_per_step(latent_dim: int, steps: int) -> int:
    """n = d / T, the dimension of each z_t; raises InputError unless T divides d."""
    if latent_dim % check_integer("model.decoder.steps", steps, 1):
        raise InputError(
            f"model.latent_dim={latent_dim} must be a multiple of model.decoder.steps={steps}: "
            "DRAW splits z into equal parts, one per step"
        )
    return latent_dim // steps


class LSTMCell(nn.Module):
    """u [..., n], h and cell [..., hidden] -> new h and cell (Hochreiter & Schmidhuber 1997, with forget gates)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        # Initialised by fan-in: a gate has hundreds of inputs, and fan-out initialisation would saturate it.
        self.gates = head(inputs + hidden, 4 * hidden)

    def forward(self, u: Tensor, h: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        input_gate, forget_gate, output_gate, candidate = self.gates(torch.cat([u, h], -1)).chunk(4, -1)
        cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
        return output_gate.sigmoid() * cell.tanh(), cell


def filterbank(centre: Tensor, stride: Tensor, log_variance: Tensor, size: int, length: int) -> Tensor:
    """N normalised Gaussian filters over the pixels 1..length (eq. 19-20, 25-26): [...] -> [..., N, length].

    Filter i = 1..N is centred at centre + (i - N/2 - 1/2) stride. Normalisation is by a softmax over pixels, because
    the sum of a filter far outside the image underflows.
    """
    options = {"dtype": centre.dtype, "device": centre.device}
    offsets = torch.arange(1, size + 1, **options) - size / 2 - 0.5  # type: ignore[call-overload]
    pixels = torch.arange(1, length + 1, **options)  # type: ignore[call-overload]
    centres = centre.unsqueeze(-1) + offsets * stride.unsqueeze(-1)
    squared = (pixels - centres.unsqueeze(-1)).square()
    return torch.softmax(-0.5 * squared * torch.exp(-log_variance)[..., None, None], -1)


class Window(nn.Module):
    """The position of an N x N window, from the decoder's state (eq. 21-24).

    Arguments:
        hidden: width of the decoder's state.
        size: N.
        height, width: of the image; strides are relative to the longer side.
    """

    def __init__(self, hidden: int, size: int, height: int, width: int) -> None:
        super().__init__()
        self.size, self.height, self.width = size, height, width
        self.place = head(hidden, 5)  # at zero output the window spans the image, with variance and intensity 1

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h [..., hidden] -> F_Y [..., 1, N, H], F_X [..., 1, N, W] and intensity [..., 1, 1, 1], a 1 for channels."""
        x, y, log_variance, log_stride, log_intensity = self.place(h).unbind(-1)
        stride = (max(self.height, self.width) - 1) / (self.size - 1) * log_stride.exp()
        rows = filterbank((self.height + 1) / 2 * (y + 1), stride, log_variance, self.size, self.height)
        columns = filterbank((self.width + 1) / 2 * (x + 1), stride, log_variance, self.size, self.width)
        return rows.unsqueeze(-3), columns.unsqueeze(-3), log_intensity.exp()[..., None, None, None]


class Reader(nn.Module):
    """The encoder's read operation: images [..., C, H, W], h_dec [..., hidden] -> [..., features] (eq. 17, 27).

    Arguments:
        channels: C, error image included.
        height, width: of the image.
        hidden: width of the decoder's state.
        size: N, or None for the whole image.
    """

    def __init__(self, channels: int, height: int, width: int, hidden: int, size: int | None) -> None:
        super().__init__()
        self.window = None if size is None else Window(hidden, size, height, width)
        self.features = channels * (height * width if size is None else size * size)

    def forward(self, images: Tensor, h: Tensor) -> Tensor:
        if self.window is None:
            return images.flatten(-3)
        rows, columns, intensity = self.window(h)
        return (intensity * (rows @ images @ columns.mT)).flatten(-3)


class Writer(nn.Module):
    """The decoder's write operation: h_dec [..., hidden] -> update of the canvas [..., C, H, W] (eq. 18, 28-29).

    Arguments:
        image_shape: (C, H, W).
        hidden: width of the decoder's state.
        size: N, or None for the whole image.
    """

    def __init__(self, image_shape: Sequence[int], hidden: int, size: int | None) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.window = None if size is None else Window(hidden, size, height, width)
        self.shape = (channels, height, width) if size is None else (channels, size, size)
        self.patch = head(hidden, math.prod(self.shape))  # small at first: T patches add up

    def forward(self, h: Tensor) -> Tensor:
        patch = self.patch(h).unflatten(-1, self.shape)
        if self.window is None:
            return patch
        rows, columns, intensity = self.window(h)
        return (rows.mT @ patch @ columns) / intensity


class EncoderState(NamedTuple):
    """h and cell [..., B, hidden]."""

    h: Tensor
    cell: Tensor


class DecoderState(NamedTuple):
    """Canvas c_t [..., B, C, H, W], without the model's offset; h and cell [..., B, hidden]."""

    canvas: Tensor
    h: Tensor
    cell: Tensor


class DrawEncoder(nn.Module):
    """DRAW's encoder. It needs the decoder's state at each step, so only vaerun.inference.Recurrent can use it.

    Arguments:
        image_shape: (C, H, W).
        context: number of classes, 0 when unconditional; the label enters at every step.
        hidden: width of its LSTM, and its number of `features`.
        read_size: N of the reading window, or None for the whole image.
        decoder_hidden: width of the decoder's LSTM.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        context: int = 0,
        *,
        hidden: int,
        read_size: int | None,
        decoder_hidden: int,
    ) -> None:
        super().__init__()
        self.features = check_integer("model.encoder.hidden", hidden, 1)
        self.decoder_hidden = check_integer("model.encoder.decoder_hidden", decoder_hidden, 1)
        channels, height, width = image_shape
        self.read = Reader(
            2 * channels, height, width, decoder_hidden, check_window_size("model.encoder.read_size", read_size)
        )
        self.cell = LSTMCell(self.read.features + decoder_hidden + context, hidden)
        self.hidden_bias, self.cell_bias = (nn.Parameter(torch.zeros(hidden)) for _ in range(2))

    def initial(self, *rows: int) -> EncoderState:
        """The learned state before the first step, for the leading shape `rows` = (..., B)."""
        return EncoderState(self.hidden_bias.expand(*rows, -1), self.cell_bias.expand(*rows, -1))

    def advance(self, state: EncoderState, x: Tensor, error: Tensor, h: Tensor, c: Tensor | None) -> EncoderState:
        """One step.

        Arguments:
            state: of the encoder, rows [..., B].
            x: the image [B, C, H, W].
            error: the error image x - sigma(c_{t-1}), [..., B, C, H, W].
            h: the decoder's h_dec_{t-1}, [..., B, decoder_hidden].
            c: labels [B, classes] or None.
        """
        read = self.read(torch.cat([x.expand_as(error), error], -3), h)
        return EncoderState(*self.cell(append_context(torch.cat([read, h], -1), c), *state))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Raises InputError: the encoder cannot run without the decoder's state."""
        raise InputError("the encoder of network=draw runs in step with its decoder: use model=draw")


class DrawDecoder(nn.Module):
    """DRAW's decoder: z = (z_1 ... z_T) [..., B, d], c [B, classes] or None -> canvas c_T [..., B, C, H, W].

    Arguments:
        latent_dim: d, a multiple of `steps`; raises InputError otherwise.
        image_shape: (C, H, W).
        context: number of classes, 0 when unconditional; the label enters at every step.
        steps: T.
        hidden: width of its LSTM.
        write_size: N of the writing window, or None for the whole image.
    """

    affine: nn.Linear | None = None

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        context: int = 0,
        *,
        steps: int,
        hidden: int,
        write_size: int | None,
    ) -> None:
        super().__init__()
        self.steps, self.piece = steps, dim_per_step(latent_dim, steps)
        self.hidden = check_integer("model.decoder.hidden", hidden, 1)
        self.cell = LSTMCell(self.piece + context, hidden)
        self.write = Writer(image_shape, hidden, check_window_size("model.decoder.write_size", write_size))
        self.canvas_bias = nn.Parameter(torch.zeros(*image_shape))
        self.hidden_bias, self.cell_bias = (nn.Parameter(torch.zeros(hidden)) for _ in range(2))

    def initial(self, *rows: int) -> DecoderState:
        """The learned state before the first step, for the leading shape `rows` = (..., B)."""
        return DecoderState(
            self.canvas_bias.expand(*rows, -1, -1, -1),
            self.hidden_bias.expand(*rows, -1),
            self.cell_bias.expand(*rows, -1),
        )

    def advance(self, state: DecoderState, z: Tensor, c: Tensor | None = None) -> DecoderState:
        """One step with z_t [..., B, n], for a state of the same leading shape."""
        h, cell = self.cell(append_context(z, c), state.h, state.cell)
        return DecoderState(state.canvas + self.write(h), h, cell)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        state = self.initial(*z.shape[:-1])
        for step_dim in z.split(self.piece, -1):
            state = self.advance(state, step_dim, c)
        return state.canvas
