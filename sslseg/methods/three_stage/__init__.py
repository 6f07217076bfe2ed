"""Three-stage self-training (Ke, Aviles-Rivero, Pandey, Reddy and Schönlieb, 2020)."""

from sslseg.methods.three_stage.method import ThreeStage

__all__ = ["ThreeStage"]
