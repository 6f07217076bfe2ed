"""The maps in one HDF5 file: written small, read fast."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5o, h5p, h5t, h5z

from sslseg.store.format import LEVELS, Encoded, MapKind, create_file

ORIGIN = (0, 0)


class MapWriter:
    """Writes encoded maps into a file that has their groups.

    HDF5 reserves about 140 bytes for attributes in the header of each new dataset, half the size of a small mask, but
    none in a copied one. So every dataset is copied from an empty one and then gets its chunk.
    """

    def __init__(self, file: h5py.File, kinds: Mapping[str, MapKind]) -> None:
        self._kinds = kinds
        self._folders: dict[str, h5py.Group] = {"": file}
        self._empty = create_file(uuid.uuid4().hex, driver="core", backing_store=False)
        self._unicode = h5p.create(h5p.LINK_CREATE)
        self._unicode.set_char_encoding(h5t.CSET_UTF8)

    def write(self, kind: str, key: str, encoded: Encoded) -> None:
        """Create the dataset ``kind/key``."""
        path, _, leaf = f"{kind}/{key}".rpartition("/")
        folder = self._folder(path).id
        name = leaf.encode()
        h5o.copy(
            self._empty.id,
            self._template(self._kinds[kind].encoding, encoded),
            folder,
            name,
            lcpl=None if leaf.isascii() else self._unicode,
        )
        h5d.open(folder, name).write_direct_chunk(ORIGIN, encoded.data)

    def _folder(self, path: str) -> h5py.Group:
        if path not in self._folders:
            parent, _, leaf = path.rpartition("/")
            self._folders[path] = self._folder(parent).require_group(leaf)
        return self._folders[path]

    def _template(self, encoding: str, encoded: Encoded) -> bytes:
        name = f"{encoding} {encoded.shape} {encoded.dtype.str}"
        if name not in self._empty:
            self._empty.create_dataset(
                name,
                shape=encoded.shape,
                dtype=encoded.dtype,
                chunks=encoded.shape,
                compression="gzip",
                compression_opts=LEVELS[encoding],
                shuffle=encoded.dtype.itemsize > 1,
                track_times=False,
            )
        return name.encode()


class _Place(NamedTuple):
    offset: int
    size: int
    shape: tuple[int, int]
    dtype: np.dtype


class MapFile:
    """Reads maps of an open file.

    The place of each map that has our writer's layout is cached, and its bytes are read directly: for small masks,
    reading through HDF5 takes longer than decoding a PNG.
    """

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self._places: dict[str, _Place | None] = {}
        # Elsewhere chunk addresses do not count from the first byte of one plain file.
        plain = file.driver == "sec2" and file.userblock_size == 0
        self._descriptor: int | None = file.id.get_vfd_handle() if plain else None

    def read(self, kind: str, key: str) -> Encoded | np.ndarray:
        """Return the map ``kind/key``: encoded if it has our writer's layout, else as an array.

        Raises:
            KeyError: there is no such dataset.
            OSError: HDF5 cannot read it.
        """
        path = f"{kind}/{key}"
        if path not in self._places:
            self._places[path] = self._locate(path)
        place = self._places[path]
        if place is None or self._descriptor is None:
            array = self.file[path][()]
            return array.astype(array.dtype.newbyteorder("="), copy=False)
        return Encoded(os.pread(self._descriptor, place.size, place.offset), place.shape, place.dtype)

    def _locate(self, path: str) -> _Place | None:
        dataset = h5d.open(self.file.id, path.encode())
        dtype, shape = dataset.dtype, dataset.shape
        properties = dataset.get_create_plist()
        filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
        ours = {"|u1": [h5z.FILTER_DEFLATE], "<u2": [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE]}.get(dtype.str)
        if len(shape) != 2 or filters != ours or properties.get_chunk() != shape or dataset.get_num_chunks() != 1:
            return None
        chunk = dataset.get_chunk_info(0)
        return _Place(chunk.byte_offset, chunk.size, shape, dtype) if chunk.filter_mask == 0 else None
