"""Networks: tensors to tensors, with optional context. They know nothing of distributions (layer L0)."""

from vaerun.nets.conv import ConvDecoder, ConvEncoder
from vaerun.nets.draw import DrawDecoder, DrawEncoder
from vaerun.nets.mlp import MLPDecoder, MLPEncoder

__all__ = ["ConvDecoder", "ConvEncoder", "DrawDecoder", "DrawEncoder", "MLPDecoder", "MLPEncoder"]
