"""The methods: each wraps any mmseg segmentor; importing this package registers them."""

from sslseg.methods.base import SemiSegmentor
from sslseg.methods.cutmix import CutMix
from sslseg.methods.mean_teacher import MeanTeacher
from sslseg.methods.supervised import Supervised
from sslseg.methods.three_stage import ThreeStage

__all__ = ["CutMix", "MeanTeacher", "SemiSegmentor", "Supervised", "ThreeStage"]
