"""Networks: maps from tensors to tensors, with optional context, independent of distributions (layer L0)."""

from vaerun.nets.adversarial import ConvDiscriminator, ConvGenerator, MLPDiscriminator, MLPGenerator
from vaerun.nets.conv import ConvDecoder, ConvEncoder
from vaerun.nets.draw import DrawDecoder, DrawEncoder
from vaerun.nets.mlp import MLPDecoder, MLPEncoder

__all__ = [
    "ConvDecoder",
    "ConvDiscriminator",
    "ConvEncoder",
    "ConvGenerator",
    "DrawDecoder",
    "DrawEncoder",
    "MLPDecoder",
    "MLPDiscriminator",
    "MLPEncoder",
    "MLPGenerator",
]
