"""The methods: each wraps any mmseg segmentor; importing this package registers them."""

from sslseg.methods.adv_ssl import AdvSSL
from sslseg.methods.ael import AEL
from sslseg.methods.base import SemiSegmentor
from sslseg.methods.cutmix import CutMix
from sslseg.methods.gct import GCT
from sslseg.methods.guidedmix import GuidedMix
from sslseg.methods.mean_teacher import MeanTeacher
from sslseg.methods.s4l import S4L
from sslseg.methods.self_training import SelfTraining
from sslseg.methods.supervised import Supervised
from sslseg.methods.three_stage import ThreeStage
from sslseg.methods.u2pl import U2PL

__all__ = [
    "AEL",
    "GCT",
    "S4L",
    "U2PL",
    "AdvSSL",
    "CutMix",
    "GuidedMix",
    "MeanTeacher",
    "SelfTraining",
    "SemiSegmentor",
    "Supervised",
    "ThreeStage",
]
