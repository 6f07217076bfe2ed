"""What the papers add to mmseg's networks."""

from sslseg.networks.deeplabv2 import DeepLabV2Head
from sslseg.networks.mitrans import MITransHead
from sslseg.networks.pyramid import PyramidPooling

__all__ = ["DeepLabV2Head", "MITransHead", "PyramidPooling"]
