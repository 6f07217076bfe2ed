"""Adaptive Equalization Learning (Hu et al., NeurIPS 2021)."""

from sslseg.methods.ael.method import AEL

__all__ = ["AEL"]
