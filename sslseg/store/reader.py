"""Reading a prediction store, from one process or many."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sslseg.errors import UserError
from sslseg.store.format import (
    FLAW,
    FLAW_MAPS,
    FORMAT,
    KINDS,
    MASKS,
    RANKED,
    SCORE_KINDS,
    VERSION,
    Encoded,
    StoreHeader,
    decode,
    keys,
    read_header,
)
from sslseg.store.maps import MapFile
from sslseg.store.segments import partial_path


class StoreReader:
    """A complete prediction store, read only; opened once in every process that uses it, so it may be pickled.

    Raises:
        UserError: the file is missing, incomplete, damaged, or no store of a version that is known.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._opened: tuple[int, MapFile] | None = None
        file = self._maps().file
        try:
            self.header: StoreHeader = read_header(file)
            self.ids: list[str] = file["ids"].asstr()[()].tolist()
            self.positions: np.ndarray = file["positions"][()]
            self.kinds: tuple[str, ...] = tuple(kind for kind in KINDS if kind in file)
            self.content_sha256: str = str(file.attrs["content_sha256"])
            self._scales = {kind: np.float32(file[kind].attrs["scale"]) for kind in self.kinds if kind in SCORE_KINDS}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if MASKS not in self.kinds or len(self.positions) != len(self.ids) or not file.attrs.get("complete"):
            raise self._damaged("it has no masks, as many positions as ids, or no mark of being complete")
        self._keys = keys(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict(_opened=None)

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
    def shard(self) -> str:
        """``i/n``; ``0/1`` is a whole store."""
        return self.header.shard

    @property
    def provenance(self) -> dict[str, Any]:
        return json.loads(self.header.provenance)

    def has(self, kind: str) -> bool:
        """Tell whether there are maps of ``kind``; ``flaw`` stands for those of both models."""
        return all(part in self.kinds for part in (FLAW_MAPS if kind == FLAW else (kind,)))

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores of the masks: those of confidence, entropy and flaw that the store has."""
        return tuple(kind for kind in RANKED if self.has(kind))

    def mask(self, name: str) -> np.ndarray:
        """Return the mask of an id: H x W class indices, uint8 (uint16 over 255 classes)."""
        return self.stored(MASKS, name)

    def confidence(self, name: str) -> np.ndarray:
        """Return the largest class probability of each pixel, H x W float32 in [0, 1]."""
        return self.score("confidence", name)

    def entropy(self, name: str) -> np.ndarray:
        """Return the entropy of each pixel divided by log C, H x W float32 in [0, 1]."""
        return self.score("entropy", name)

    def flaw(self, name: str) -> np.ndarray:
        """Return the flaw probability of the model that each pixel comes from, H x W float32 in [0, 1]."""
        return self.score(FLAW, name)

    def score(self, kind: str, name: str) -> np.ndarray:
        """Return the score map ``kind`` of an id, H x W float32 in [0, 1]."""
        return self.stored(kind, name).astype(np.float32) * self.scale(kind)

    def scale(self, kind: str) -> np.float32:
        """Return what the stored values of a score are multiplied with."""
        return self._scales[FLAW_MAPS[0] if kind == FLAW else kind]

    def stored(self, kind: str, name: str) -> np.ndarray:
        """Return a map as it is stored, without scale."""
        if kind == FLAW:
            return np.minimum(*(self.stored(part, name) for part in FLAW_MAPS))
        found = self.encoded(kind, name)
        try:
            return decode(found) if isinstance(found, Encoded) else found
        except (ValueError, zlib.error) as error:
            raise self._damaged(f"{kind}/{name}: {error}") from error

    def encoded(self, kind: str, name: str) -> Encoded | np.ndarray:
        """Return a map in its compressed form where it has our writer's filters, else as an array."""
        if kind not in self.kinds:
            raise UserError(f"store {self.path} holds no {kind}; make it with `sslseg pseudolabel --scores {kind}`")
        if name not in self._keys:
            raise UserError(
                f"store {self.path} has no id {name!r}; it holds {len(self)} others, such as {self.ids[0]!r}"
            )
        try:
            return self._maps().read(kind, self._keys[name])
        except (OSError, KeyError, RuntimeError) as error:
            raise self._damaged(f"{kind}/{name}: {error}") from error

    def maps(self, kind: str) -> dict[str, str]:
        """Return the id of every map of ``kind`` in the file by its key; one that belongs to no id gets its key."""
        names = {key: name for name, key in self._keys.items()}
        found: list[str] = []
        self._maps().file[kind].visititems(
            lambda key, item: found.append(key) if isinstance(item, h5py.Dataset) else None
        )
        return {key: names.get(key, key) for key in found}

    def attribute(self, element: str, name: str) -> Any:
        """Return an attribute of an element at the root, None where it is missing."""
        return self._maps().file[element].attrs.get(name)

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"store {self.path} is damaged ({reason}); make it anew")

    def _maps(self) -> MapFile:
        # A forked worker must not share its parent's handle.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), MapFile(open_store(self.path)))
        return self._opened[1]

    def close(self) -> None:
        """Close the file in this process; the next read opens it again."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].file.close()
        self._opened = None


def open_store(path: Path) -> h5py.File:
    """Open the file of a complete store for reading."""
    if not path.exists():
        if partial_path(path).exists():
            raise UserError(
                f"store {path} is incomplete; finish it with the same `sslseg pseudolabel` command and --resume"
            )
        raise UserError(f"store {path} does not exist; make one with `sslseg pseudolabel`")
    try:
        file = h5py.File(path, "r", locking=False)
    except PermissionError:
        raise
    except OSError as error:
        raise UserError(f"{path} is no readable HDF5 file; it is damaged or something else: make it anew") from error
    version = file.attrs.get("format_version")
    if file.attrs.get("format") != FORMAT or version is None:
        file.close()
        raise UserError(f"{path} is HDF5, but no prediction store of sslseg; give one that `sslseg pseudolabel` made")
    if version > VERSION:
        file.close()
        raise UserError(f"store {path} has version {version}, this program reads up to {VERSION}; update sslseg")
    return file
