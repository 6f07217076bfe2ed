"""Prediction under a named protocol."""

from sslseg.inference.predictor import Prediction, Predictor, predict_all
from sslseg.inference.protocol import Protocol, with_tta

__all__ = ["Prediction", "Predictor", "Protocol", "predict_all", "with_tta"]
