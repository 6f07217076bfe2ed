"""Networks that mmseg lacks, and that no single paper owns; importing this package registers them."""

from sslseg.networks import losses, packaged_weights
from sslseg.networks.deeplabv2 import DeepLabV2Head
from sslseg.networks.efficientnet_lite import EfficientNetLite

__all__ = ["DeepLabV2Head", "EfficientNetLite", "losses", "packaged_weights"]
