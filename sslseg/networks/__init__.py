"""What the papers add to mmseg's networks."""

from sslseg.networks.deeplabv2 import DeepLabV2Head

__all__ = ["DeepLabV2Head"]
