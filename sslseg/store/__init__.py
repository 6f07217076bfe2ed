"""The prediction store: masks and scores of many images in one HDF5 file (``docs/store-format.md``)."""

from sslseg.store.check import merge_stores, verify_store
from sslseg.store.format import StoreHeader
from sslseg.store.reader import StoreReader
from sslseg.store.segments import partial_path
from sslseg.store.writer import StoreWriter

__all__ = ["StoreHeader", "StoreReader", "StoreWriter", "merge_stores", "partial_path", "verify_store"]
