"""Reading a prediction store, from one process or many."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sslseg.errors import UserError
from sslseg.store.format import (
    FORMAT,
    MASKS,
    PARTIAL,
    SCORE_KINDS,
    VERSION,
    Encoded,
    StoreHeader,
    decode,
    keys,
    read_header,
    read_map,
)


class StoreReader:
    """A complete prediction store, read only; opened once in every process that uses it, so it may be pickled.

    Raises:
        UserError: the file is missing, incomplete, damaged, or no store of a version that is known.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._opened: tuple[int, h5py.File] | None = None
        self._groups: dict[str, h5py.Group] = {}
        file = self._file()
        self.header: StoreHeader = read_header(file)
        self.ids: list[str] = [name.decode() for name in file["ids"][()]]
        self.positions: np.ndarray = file["positions"][()]
        self.kinds: tuple[str, ...] = tuple(kind for kind in (MASKS, *SCORE_KINDS) if kind in file)
        self.content_sha256: str = str(file.attrs["content_sha256"])
        self._keys = keys(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict(_opened=None, _groups={})

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.header.palette

    @property
    def ignore_index(self) -> int:
        return self.header.ignore_index

    @property
    def provenance(self) -> dict[str, Any]:
        return json.loads(self.header.provenance)

    def mask(self, name: str) -> np.ndarray:
        """Return the mask of an id: H x W class indices, uint8 (uint16 over 255 classes)."""
        return self.stored(MASKS, name)

    def confidence(self, name: str) -> np.ndarray:
        """Return the largest class probability of each pixel, H x W float32 in [0, 1]."""
        return self._score("confidence", name)

    def entropy(self, name: str) -> np.ndarray:
        """Return the entropy of each pixel divided by log C, H x W float32 in [0, 1]."""
        return self._score("entropy", name)

    def _score(self, kind: str, name: str) -> np.ndarray:
        scale = self._group(kind).attrs["scale"]
        return self.stored(kind, name).astype(np.float32) * np.float32(scale)

    def stored(self, kind: str, name: str) -> np.ndarray:
        """Return a map as it is stored, without scale."""
        found = self.encoded(kind, name)
        return decode(found) if isinstance(found, Encoded) else found

    def encoded(self, kind: str, name: str) -> Encoded | np.ndarray:
        """Return a map in its compressed form where it has our writer's filters, else as an array."""
        if name not in self._keys:
            raise UserError(
                f"store {self.path} has no id {name!r}; it holds {len(self)} others, such as {self.ids[:1]}"
            )
        try:
            return read_map(self._group(kind), self._keys[name])
        except (OSError, KeyError, RuntimeError) as error:
            raise UserError(f"store {self.path} is damaged at {kind}/{name} ({error}); make it anew") from error

    def _group(self, kind: str) -> h5py.Group:
        file = self._file()
        if kind not in self._groups:
            if kind not in file:
                raise UserError(f"store {self.path} holds no {kind}; make it with `sslseg pseudolabel --scores {kind}`")
            self._groups[kind] = file[kind]
        return self._groups[kind]

    def _file(self) -> h5py.File:
        if self._opened is None or self._opened[0] != os.getpid():
            self._groups = {}
            self._opened = (os.getpid(), open_store(self.path))
        return self._opened[1]

    def close(self) -> None:
        """Close the file in this process."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened, self._groups = None, {}


def open_store(path: Path) -> h5py.File:
    """Open the file of a complete store for reading."""
    partial = path.with_name(path.name + PARTIAL)
    if not path.exists() and partial.exists():
        raise UserError(
            f"store {path} is incomplete; finish it with the same `sslseg pseudolabel` command and --resume"
        )
    if not path.exists():
        raise UserError(f"store {path} does not exist; make one with `sslseg pseudolabel`")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"{path} is no readable HDF5 file; it is damaged or something else: make it anew") from error
    if file.attrs.get("format") != FORMAT:
        file.close()
        raise UserError(f"{path} is HDF5, but no prediction store of sslseg; give one that `sslseg pseudolabel` made")
    if file.attrs["format_version"] > VERSION:
        raise UserError(
            f"store {path} has version {file.attrs['format_version']}, this program reads up to {VERSION}; update sslseg"
        )
    return file
