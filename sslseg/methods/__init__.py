"""The methods: each wraps any mmseg segmentor; importing this package registers them."""

from sslseg.methods.base import SemiSegmentor
from sslseg.methods.supervised import Supervised

__all__ = ["SemiSegmentor", "Supervised"]
