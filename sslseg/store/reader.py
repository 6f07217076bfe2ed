"""Reading a prediction store, from one process or many."""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from sslseg.errors import UserError
from sslseg.store.format import (
    BUILT_IN,
    FORMAT,
    IMAGE_SCORE,
    IMAGE_SCORES,
    LABEL_MAP,
    LEVELS,
    LISTS,
    MASKS,
    SCORE_MAP,
    VERSION,
    Encoded,
    MapKind,
    StoreHeader,
    decode,
    derived_scores,
    in_order,
    keys,
    read_header,
)
from sslseg.store.maps import MapFile
from sslseg.store.segments import partial_path


class StoreReader:
    """A complete prediction store, read only; every process opens the file itself, so a reader may be pickled.

    A *score* is a kind of score map, or the score ``NAME`` that the kinds ``NAME_maps/MODEL`` are together: that of the
    model that each pixel of a fused mask comes from.

    Attributes:
        kinds: every kind of map in the file, in the order of ``format.in_order``.
        scores: the scores that rate the masks: confidence, entropy, those of several maps, others.
        image_scores: scores of whole images, in [0, 1], high for reliable ones: by name, then by id.
        unknown: path and ``encoding_type`` of elements that this version cannot read.

    Raises:
        UserError: the file is missing, incomplete, damaged, or not a store of a known version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._opened: tuple[int, MapFile] | None = None
        file = self._maps().file
        try:
            self.header: StoreHeader = read_header(file)
            self.ids: list[str] = file["ids"].asstr()[()].tolist()
            self.positions: np.ndarray = file["positions"][()]
            found, image_scores, self.unknown = find_elements(file)
            self.kinds: Mapping[str, MapKind] = in_order(found)
            self.content_sha256: str = str(file.attrs["content_sha256"])
            self._scales = {
                name: np.float32(file[name].attrs["scale"]) for name, kind in self.kinds.items() if kind.is_score
            }
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if MASKS not in self.kinds or len(self.positions) != len(self.ids) or not file.attrs.get("complete"):
            raise self._damaged("it lacks masks, a position of each id, or the mark of being complete")
        for name, values in image_scores.items():
            if values.shape != (len(self),) or not ((values >= 0) & (values <= 1)).all():
                raise self._damaged(f"{IMAGE_SCORES}/{name} does not hold a number in [0, 1] for each id")
        self.image_scores: Mapping[str, Mapping[str, float]] = {
            name: dict(zip(self.ids, values.tolist(), strict=True)) for name, values in image_scores.items()
        }
        self._keys = keys(self.ids)
        self._parts = {
            score: parts
            for score, parts in derived_scores(self.kinds).items()
            if len({(self.kinds[part].high, self._scales[part]) for part in parts}) == 1
        }
        parts_of_others = {part for parts in self._parts.values() for part in parts}
        own = [name for name in self._scales if name not in parts_of_others]
        self.scores: tuple[str, ...] = (
            *(name for name in own if name in BUILT_IN),
            *self._parts,
            *(name for name in own if name not in BUILT_IN),
        )

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
        """Return whether there are maps of this kind, or such a score."""
        return kind in self.kinds or kind in self._parts

    def high(self, score: str) -> Literal["wrong", "right"]:
        """Return what a high value of a score means: the mask is ``wrong``, or it is ``right``."""
        return self.kinds[self._score_parts(score)[0]].high

    def _score_parts(self, score: str) -> tuple[str, ...]:
        """Return the stored kinds of a score."""
        parts = self._parts.get(score, (score,))
        if parts[0] not in self._scales:
            raise UserError(f"store {self.path} holds no score {score!r}; it holds {', '.join(self.scores) or 'none'}")
        return parts

    def mask(self, name: str) -> np.ndarray:
        """Return the mask of an id: H x W class indices, uint8 (uint16 over 255 classes)."""
        return self.stored(MASKS, name)

    def confidence(self, name: str) -> np.ndarray:
        """Return the largest class probability of each pixel, H x W float32 in [0, 1]."""
        return self.score("confidence", name)

    def entropy(self, name: str) -> np.ndarray:
        """Return the entropy of each pixel divided by log C, H x W float32 in [0, 1]."""
        return self.score("entropy", name)

    def score(self, kind: str, name: str) -> np.ndarray:
        """Return the score ``kind`` of an id, H x W float32 in [0, 1]."""
        return self.stored(kind, name).astype(np.float32) * self.scale(kind)

    def scale(self, kind: str) -> np.float32:
        """Return the factor of the stored values of a score."""
        return self._scales[self._score_parts(kind)[0]]

    def stored(self, kind: str, name: str) -> np.ndarray:
        """Return a map as it is stored, without scale; of a score of several models, that of the most reliable one."""
        if kind in self._parts:
            best = np.minimum if self.high(kind) == "wrong" else np.maximum
            return functools.reduce(best, (self.stored(part, name) for part in self._parts[kind]))
        found = self.encoded(kind, name)
        try:
            return decode(found) if isinstance(found, Encoded) else found
        except (ValueError, zlib.error) as error:
            raise self._damaged(f"{kind}/{name}: {error}") from error

    def encoded(self, kind: str, name: str) -> Encoded | np.ndarray:
        """Return a map, compressed if it has our writer's layout, else as an array."""
        if kind not in self.kinds:
            raise UserError(f"store {self.path} holds no {kind}; store it with `sslseg pseudolabel --scores {kind}`")
        if name not in self._keys:
            raise UserError(f"store {self.path} has no id {name!r}; it holds {len(self)} ids, such as {self.ids[0]!r}")
        try:
            return self._maps().read(kind, self._keys[name])
        except (OSError, KeyError, RuntimeError) as error:
            raise self._damaged(f"{kind}/{name}: {error}") from error

    def maps(self, kind: str) -> dict[str, str]:
        """Return the id of every map of ``kind`` in the file by its key; without an id, the key itself."""
        names = {key: name for name, key in self._keys.items()}
        found: list[str] = []
        self._maps().file[kind].visititems(
            lambda key, item: found.append(key) if isinstance(item, h5py.Dataset) else None
        )
        return {key: names.get(key, key) for key in found}

    def image_score_arrays(self) -> dict[str, np.ndarray]:
        """Return the scores of whole images as they are stored: N float32 each, in the order of ``ids``."""
        return {
            name: np.array([values[id_] for id_ in self.ids], np.float32) for name, values in self.image_scores.items()
        }

    def attribute(self, element: str, name: str) -> Any:
        """Return an attribute of an element, None where it is missing."""
        return self._maps().file[element].attrs.get(name)

    def check_encodings(self) -> None:
        """Raise UserError if the store holds an element that this version cannot read, and so would not copy."""
        for path, encoding in self.unknown.items():
            raise UserError(
                f"store {self.path}: /{path} has the unknown encoding_type {encoding!r}; update sslseg, or remove it"
            )

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"store {self.path} is damaged ({reason}); recreate it")

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


def find_elements(file: h5py.File) -> tuple[dict[str, MapKind], dict[str, np.ndarray], dict[str, str]]:
    """Return the kinds of maps in a file, the scores of images (N float32 each, in the order of the ids), and the encoding of
    elements that this version cannot read, by path.

    Raises:
        ValueError: an element has other attributes than its kind allows.
    """
    kinds: dict[str, MapKind] = {}
    scores: dict[str, np.ndarray] = {}
    unknown: dict[str, str] = {}
    for path, item in _elements(file):
        encoding = item.attrs["encoding_type"]
        if encoding in LEVELS and isinstance(item, h5py.Group):
            # Version 1 has no `high`.
            high = item.attrs.get("high", BUILT_IN.get(path, SCORE_MAP).high)
            kinds[path] = MapKind("score-map", high=high) if encoding == SCORE_MAP.encoding else LABEL_MAP
        elif path.startswith(f"{IMAGE_SCORES}/") and encoding == IMAGE_SCORE and isinstance(item, h5py.Dataset):
            scores[path.removeprefix(f"{IMAGE_SCORES}/")] = item[()].astype(np.float32)
        elif path not in LISTS:
            unknown[path] = str(encoding)
        if path in BUILT_IN and encoding != BUILT_IN[path].encoding:
            raise ValueError(f"/{path} has encoding_type {encoding!r}, not {BUILT_IN[path].encoding!r}")
    return kinds, dict(sorted(scores.items())), unknown


def _elements(group: h5py.Group, folder: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and object of everything with an ``encoding_type``; a group without one may be a folder of them."""
    for name in group:
        item = group.get(name)
        if item is None:
            continue  # a link to nothing
        if "encoding_type" in item.attrs:
            yield folder + name, item
        elif isinstance(item, h5py.Group):
            yield from _elements(item, f"{folder}{name}/")
        elif folder:
            return  # these are maps, perhaps a million, of a kind that is not ours


def open_store(path: Path) -> h5py.File:
    """Open the file of a complete store for reading."""
    if not path.exists():
        if partial_path(path).exists():
            raise UserError(
                f"store {path} is incomplete; finish it with the same `sslseg pseudolabel` command and --resume"
            )
        raise UserError(f"store {path} does not exist; create one with `sslseg pseudolabel`")
    try:
        file = h5py.File(path, "r", locking=False)
    except PermissionError:
        raise
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file; it is damaged or something else: recreate it") from error
    version = file.attrs.get("format_version")
    if file.attrs.get("format") != FORMAT or version is None:
        file.close()
        raise UserError(f"{path} is an HDF5 file, but not a prediction store; give one that `sslseg pseudolabel` made")
    if version > VERSION:
        file.close()
        raise UserError(f"store {path} has version {version}, this program reads up to {VERSION}; update sslseg")
    return file
