"""The prediction store's format (``docs/store-format.md``): kinds of maps, header, digest, one encoded map."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np

from sslseg import __version__
from sslseg.errors import UserError

FORMAT, VERSION = "sslseg-store", 2
LISTS = {"ids": "string-array", "positions": "array"}
SCORE_LEVELS = 1 << 16  # 16-bit fixed point
SCORE_SCALE = 1.0 / (SCORE_LEVELS - 1)
ENCODING_VERSION = 1
AGREEMENT = "agreement"  # how well earlier snapshots of a training agree with its last model on an image
IMAGE_SCORES, IMAGE_SCORE = "image_scores", "image-score"  # the group of the scores of whole images, and their encoding
# `tools/bench_filters.py` measures masks: level 9 gains 2% at most for twice the time. The low byte of scores is noise,
# on which effort is wasted.
LEVELS = {"label-map": 8, "score-map": 3}


@dataclass(frozen=True)
class MapKind:
    """How one kind of map is stored.

    Attributes:
        encoding: ``label-map`` (class indices and the ignore index) or ``score-map`` (values in [0, 1]).
        high: of a score, what a high value means: the prediction is ``wrong``, or it is ``right``.
        on_request: whether it is stored only where ``--scores`` names it.
    """

    encoding: Literal["label-map", "score-map"]
    high: Literal["wrong", "right"] = "wrong"
    on_request: bool = False

    def __post_init__(self) -> None:
        if self.encoding not in LEVELS:
            raise ValueError(f"encoding {self.encoding!r} of a map is unknown; use one of: {', '.join(LEVELS)}")
        if self.high not in ("wrong", "right"):
            raise ValueError(f"high {self.high!r} of a map is unknown; use one of: wrong, right")

    @property
    def is_score(self) -> bool:
        return self.encoding == "score-map"

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of its group in the file."""
        found: dict[str, Any] = dict(encoding_type=self.encoding, encoding_version=ENCODING_VERSION)
        return found | dict(scale=SCORE_SCALE, high=self.high) if self.is_score else found


LABEL_MAP, SCORE_MAP = MapKind("label-map"), MapKind("score-map")
MASKS = "masks"
RELIABLE = "reliable_masks"  # the masks, without a class where a pixel is unreliable
BUILT_IN: Mapping[str, MapKind] = MappingProxyType(
    {MASKS: LABEL_MAP, RELIABLE: LABEL_MAP, "confidence": MapKind("score-map", high="right"), "entropy": SCORE_MAP}
)
NAME = re.compile(r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")
PART = re.compile(r"([A-Za-z0-9_-]+)_maps/[A-Za-z0-9_-]+")


def in_order(kinds: Mapping[str, MapKind]) -> dict[str, MapKind]:
    """Sort kinds: masks, confidence, entropy, other score maps, other label maps."""

    def place(item: tuple[str, MapKind]) -> tuple[bool, bool, bool, str]:
        name, kind = item
        return name != MASKS, not kind.is_score, kind.is_score and name not in BUILT_IN, name

    return dict(sorted(kinds.items(), key=place))


def derived_scores(kinds: Mapping[str, MapKind]) -> dict[str, tuple[str, ...]]:
    """Return the kinds that together are one score of a mask fused from several models, by the score's name.

    Score maps ``NAME_maps/MODEL`` are the score ``NAME``; a kind or a built-in kind of that name takes precedence.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(kinds):
        match = PART.fullmatch(name)
        if match is not None and kinds[name].is_score and match[1] not in {*kinds, *BUILT_IN}:
            found.setdefault(match[1], []).append(name)
    return {score: tuple(parts) for score, parts in found.items()}


def check_kinds(kinds: Mapping[str, MapKind]) -> None:
    """Raise UserError unless a store can hold maps of these kinds."""
    if MASKS not in kinds:
        raise UserError(f"a store needs maps of kind {MASKS!r}; add it")
    # `mask` is the argument of `StoreWriter.add` that takes the masks.
    reserved = {*LISTS, IMAGE_SCORES, "mask"}
    for name, kind in kinds.items():
        if not NAME.fullmatch(name) or name.split("/")[0] in reserved:
            raise UserError(
                f"map kind {name!r}: use words of A-Z, a-z, 0-9, _ and - joined by /, not {', '.join(sorted(reserved))}"
            )
        folder = next((other for other in kinds if name.startswith(f"{other}/")), None)
        if folder is not None:
            raise UserError(f"map kind {name!r} lies in the folder of map kind {folder!r}; rename one of them")
        if name in BUILT_IN and kind.attributes() != BUILT_IN[name].attributes():
            raise UserError(f"map kind {name!r} is built in as {BUILT_IN[name]}, not as {kind}; rename it")
        match = PART.fullmatch(name) if kind.is_score else None
        if match is not None and match[1] in {*kinds, *BUILT_IN}:
            raise UserError(f"map kind {name!r} is a part of score {match[1]!r}, which is a map kind, too; rename one")
    for score, parts in derived_scores(kinds).items():
        if len({kinds[part].high for part in parts}) > 1:
            raise UserError(
                f"map kinds {', '.join(parts)} are parts of score {score!r}; declare the same `high` of all"
            )


def check_image_scores(names: Iterable[str]) -> None:
    """Raise UserError unless a store can hold scores of images with these names."""
    for name in names:
        if not NAME.fullmatch(name) or "/" in name:
            raise UserError(f"score {name!r} of images: use a word of A-Z, a-z, 0-9, _ and -")


@dataclass(frozen=True)
class StoreHeader:
    """The metadata of a store; ``ignore_index`` marks pixels without a class, ``shard`` is ``i/n``.

    ``total`` is the number of ids of all shards together, ``provenance`` a JSON object with further metadata.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    total: int
    method: str = ""
    checkpoint_sha256: str = ""
    config_sha256: str = ""
    split_sha256: str = ""
    provenance: str = "{}"
    shard: str = "0/1"

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> StoreHeader:
        known = {field.name: record[field.name] for field in fields(cls)}
        known["classes"] = tuple(known["classes"])
        known["palette"] = tuple(tuple(map(int, color)) for color in known["palette"])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    def difference(self, other: StoreHeader, *, but: Iterable[str] = ()) -> str | None:
        """Return the name of the first field in which ``other`` differs (``provenance.KEY`` within it), or None."""
        mine, theirs = self.to_dict(), other.to_dict()
        for record in (mine, theirs):
            record |= {f"provenance.{key}": value for key, value in json.loads(record.pop("provenance")).items()}
        return next((key for key in mine | theirs if key not in but and mine.get(key) != theirs.get(key)), None)


class Encoded(NamedTuple):
    """One map as it lies in the file: a single chunk, deflated (two-byte values after HDF5's shuffle filter)."""

    data: bytes
    shape: tuple[int, int]
    dtype: np.dtype


def quantize(score: np.ndarray) -> np.ndarray:
    """Return a score map in [0, 1] as 16-bit fixed point."""
    return np.rint(np.clip(score, 0.0, 1.0) / SCORE_SCALE).astype(np.uint16)


def encode(kind: MapKind, array: np.ndarray) -> Encoded:
    """Compress the stored values of a map, H x W, uint8 or uint16."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    raw = data.tobytes() if data.itemsize == 1 else data.view(np.uint8).reshape(-1, data.itemsize).T.tobytes()
    return Encoded(zlib.compress(raw, LEVELS[kind.encoding]), (array.shape[0], array.shape[1]), data.dtype)


def decode(encoded: Encoded) -> np.ndarray:
    """Return the array that was compressed; raise zlib.error or ValueError if the data is damaged."""
    raw = np.frombuffer(bytearray(zlib.decompress(encoded.data)), np.uint8)
    if encoded.dtype.itemsize > 1:
        raw = np.ascontiguousarray(raw.reshape(encoded.dtype.itemsize, -1).T)
    return raw.view(encoded.dtype).reshape(encoded.shape)


def keys(ids: Iterable[str]) -> dict[str, str]:
    """Return the HDF5 path of each id below its kind's group.

    An id is its own path. ``%`` is written ``%25``, a part of dots alone with ``%2E``, an empty part ``%00``; an id
    that is also the folder of another gets ``%`` at its end. Reversible, since a bare ``%`` occurs nowhere else.
    """
    escaped = {name: "/".join(map(_escape, name.split("/"))) for name in ids}
    folders = {path[:at] for path in escaped.values() for at, letter in enumerate(path) if letter == "/"}
    return {name: path + "%" if path in folders else path for name, path in escaped.items()}


def _escape(part: str) -> str:
    part = part.replace("%", "%25")
    if not part:
        return "%00"
    return part.replace(".", "%2E") if set(part) == {"."} else part


class Digest:
    """SHA-256 of a store's content: for every id in order and every kind in sorted order, what it is and its values; then
    each score of images in sorted order."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def add(self, name: str, kind: str, array: np.ndarray) -> None:
        self._add(name, kind, array)

    def add_image_scores(self, scores: Mapping[str, np.ndarray]) -> None:
        for name in sorted(scores):
            self._add(None, f"{IMAGE_SCORES}/{name}", scores[name])

    def _add(self, name: str | None, kind: str, array: np.ndarray) -> None:
        head = json.dumps([name, kind, f"{array.dtype.kind}{array.dtype.itemsize}", list(array.shape)])
        self.digest.update(head.encode() + b"\n")
        self.digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()


def create_file(path: Path | str | BytesIO, **how: Any) -> h5py.File:
    """Create an HDF5 file that every library since 1.10 (2016) reads."""
    # The newest format of HDF5 2 cannot be read by the 1.14 that older h5py brings.
    return h5py.File(path, "w", libver=("v110", "v110"), **how)


def write_head(
    file: h5py.File,
    header: StoreHeader,
    kinds: Mapping[str, MapKind],
    *,
    ids: Sequence[str],
    positions: Sequence[int],
    image_scores: Mapping[str, np.ndarray],
) -> None:
    """Write the root attributes, the ids, the position of each among all shards' ids, the scores of images, and a group for
    each kind."""
    file.attrs["format"], file.attrs["format_version"] = FORMAT, VERSION
    file.attrs["program_version"] = __version__
    for name, value in header.to_dict().items():
        file.attrs[name] = json.dumps(value) if isinstance(value, list) else value
    # Strings of one length compress; variable ones would take 40 bytes each, a tenth of a small mask.
    encoded = [name.encode() for name in ids]
    names = np.array(encoded, h5py.string_dtype("utf-8", max(map(len, encoded))))
    places = np.array(positions, np.int64)
    for name, values in dict(ids=names, positions=places).items():
        dataset = file.create_dataset(name, data=values, **_list_filters(values))
        dataset.attrs.update(encoding_type=LISTS[name], encoding_version=ENCODING_VERSION)
    for name in sorted(image_scores):
        values = image_scores[name]
        dataset = file.create_dataset(f"{IMAGE_SCORES}/{name}", data=values, **_list_filters(values))
        dataset.attrs.update(encoding_type=IMAGE_SCORE, encoding_version=ENCODING_VERSION)
    for name, kind in kinds.items():
        file.create_group(name).attrs.update(kind.attributes())


def _list_filters(values: np.ndarray) -> dict[str, Any]:
    return dict(chunks=values.shape, compression="gzip", compression_opts=9, shuffle=True, track_times=False)


def read_header(file: h5py.File) -> StoreHeader:
    """Return the header from the root attributes; raise KeyError or ValueError if one is missing or damaged."""
    record = {name: _plain(file.attrs[name]) for name in (field.name for field in fields(StoreHeader))}
    record |= {name: json.loads(record[name]) for name in ("classes", "palette")}
    return StoreHeader.from_dict(record)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
