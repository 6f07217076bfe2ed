"""U2PL (Wang et al., CVPR 2022)."""

from sslseg.methods.u2pl.method import U2PL

__all__ = ["U2PL"]
