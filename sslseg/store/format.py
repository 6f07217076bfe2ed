"""The prediction store's format, as ``docs/store-format.md`` specifies it: names, header, digest, one encoded map."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from sslseg import __version__

FORMAT, VERSION = "sslseg-store", 1
MASKS = "masks"
RELIABLE = "reliable_masks"  # the masks, without a class where a pixel is unreliable
MODEL_MASKS = ("model_masks/left", "model_masks/right")
DIRECT_MASKS = "model_masks/direct"
LABEL_KINDS = (MASKS, RELIABLE, *MODEL_MASKS, DIRECT_MASKS)
FLAW_MAPS = ("flaw_maps/left", "flaw_maps/right")
SCORE_KINDS = ("confidence", "entropy", *FLAW_MAPS)
KINDS = (MASKS, *SCORE_KINDS, *LABEL_KINDS[1:])
FLAW = "flaw"  # of the fused mask: the smaller one of the two
RANKED = ("confidence", "entropy", FLAW)
SCORE_LEVELS = 1 << 16  # 16-bit fixed point
SCORE_SCALE = 1.0 / (SCORE_LEVELS - 1)
ENCODINGS = (
    {"ids": "string-array", "positions": "array"}
    | dict.fromkeys(LABEL_KINDS, "label-map")
    | dict.fromkeys(SCORE_KINDS, "score-map")
)
ENCODING_VERSION = 1
# `tools/bench_filters.py` measures masks: level 9 gains 2% at most for twice the time. The low byte of scores is noise,
# on which effort is wasted.
LEVELS = dict.fromkeys(LABEL_KINDS, 8) | dict.fromkeys(SCORE_KINDS, 3)


@dataclass(frozen=True)
class StoreHeader:
    """What a store tells of itself; ``ignore_index`` marks pixels without a class, ``shard`` is ``i/n``.

    ``total`` is the number of ids of all shards together, ``provenance`` a JSON object of what the maker wants to tell.
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


def encode(kind: str, array: np.ndarray) -> Encoded:
    """Compress the stored values of a map, H x W, uint8 or uint16."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    raw = data.tobytes() if data.itemsize == 1 else data.view(np.uint8).reshape(-1, data.itemsize).T.tobytes()
    return Encoded(zlib.compress(raw, LEVELS[kind]), (array.shape[0], array.shape[1]), data.dtype)


def decode(encoded: Encoded) -> np.ndarray:
    """Return the array that was compressed; raise zlib.error or ValueError when the data are damaged."""
    raw = np.frombuffer(bytearray(zlib.decompress(encoded.data)), np.uint8)
    if encoded.dtype.itemsize > 1:
        raw = np.ascontiguousarray(raw.reshape(encoded.dtype.itemsize, -1).T)
    return raw.view(encoded.dtype).reshape(encoded.shape)


def keys(ids: Iterable[str]) -> dict[str, str]:
    """Return the HDF5 path of each id below its kind's group.

    An id is its own path. ``%`` is written ``%25``, a part of dots alone with ``%2E``, an empty part ``%00``; an id that
    is also the folder of another gets ``%`` at its end. Reversible, since a bare ``%`` occurs nowhere else.
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
    """SHA-256 of a store's content: for every id in order and every kind in sorted order, what it is and its values."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def add(self, name: str, kind: str, array: np.ndarray) -> None:
        head = json.dumps([name, kind, f"u{array.dtype.itemsize}", list(array.shape)])
        self.digest.update(head.encode() + b"\n")
        self.digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()


def create_file(path: Path | str | BytesIO, **how: Any) -> h5py.File:
    """Create an HDF5 file that every library since 1.10 (2016) reads."""
    # The newest format of HDF5 2 cannot be read by the 1.14 that older h5py brings.
    return h5py.File(path, "w", libver=("v110", "v110"), **how)


def write_head(
    file: h5py.File, header: StoreHeader, kinds: Iterable[str], *, ids: Sequence[str], positions: Sequence[int]
) -> None:
    """Write the root attributes, the ids, the position of each among all shards' ids, and a group for each kind."""
    file.attrs["format"], file.attrs["format_version"] = FORMAT, VERSION
    file.attrs["program_version"] = __version__
    for name, value in header.to_dict().items():
        file.attrs[name] = json.dumps(value) if isinstance(value, list) else value
    # Strings of one length compress; variable ones would take 40 bytes each, a tenth of a small mask.
    encoded = [name.encode() for name in ids]
    names = np.array(encoded, h5py.string_dtype("utf-8", max(map(len, encoded))))
    file.create_dataset("ids", data=names, **_list_filters(names))
    places = np.array(positions, np.int64)
    file.create_dataset("positions", data=places, **_list_filters(places))
    for kind in kinds:
        group = file.create_group(kind)
        if kind in SCORE_KINDS:
            group.attrs["scale"] = SCORE_SCALE
    for name in ("ids", "positions", *kinds):
        file[name].attrs["encoding_type"], file[name].attrs["encoding_version"] = ENCODINGS[name], ENCODING_VERSION


def _list_filters(values: np.ndarray) -> dict[str, Any]:
    return dict(chunks=values.shape, compression="gzip", compression_opts=9, shuffle=True, track_times=False)


def read_header(file: h5py.File) -> StoreHeader:
    """Return the header from the root attributes; raise KeyError or ValueError when one is missing or damaged."""
    record = {name: _plain(file.attrs[name]) for name in (field.name for field in fields(StoreHeader))}
    record |= {name: json.loads(record[name]) for name in ("classes", "palette")}
    return StoreHeader.from_dict(record)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
