"""GuidedMix-Net (Tu et al.); this package also registers the networks of the presets ``mitrans_*``."""

from sslseg.methods.guidedmix.method import GuidedMix
from sslseg.methods.guidedmix.mitrans import MITransHead
from sslseg.methods.guidedmix.predictor import DecoupledPredictor
from sslseg.methods.guidedmix.pyramid import PyramidPooling

__all__ = ["DecoupledPredictor", "GuidedMix", "MITransHead", "PyramidPooling"]
