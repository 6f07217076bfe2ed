"""Guided Collaborative Training (Ke et al., ECCV 2020)."""

from sslseg.methods.gct.method import GCT

__all__ = ["GCT"]
