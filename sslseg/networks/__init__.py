"""Networks beside mmseg's that several methods use."""

from sslseg.networks.deeplabv2 import DeepLabV2Head

__all__ = ["DeepLabV2Head"]
