"""The prediction store: masks and scores of many images in one HDF5 file (``docs/store-format.md``)."""

from sslseg.store.format import LABEL_MAP, SCORE_MAP, MapKind, StoreHeader
from sslseg.store.merge import merge_stores
from sslseg.store.reader import StoreReader
from sslseg.store.segments import partial_path
from sslseg.store.verify import verify_store
from sslseg.store.writer import StoreWriter

__all__ = [
    "LABEL_MAP",
    "SCORE_MAP",
    "MapKind",
    "StoreHeader",
    "StoreReader",
    "StoreWriter",
    "merge_stores",
    "partial_path",
    "verify_store",
]
