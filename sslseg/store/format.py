"""The prediction store's format, as ``docs/store-format.md`` specifies it: names, header, and one encoded array."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import h5py
import numpy as np

from sslseg import __version__

FORMAT, VERSION = "sslseg-store", 1
MASKS = "masks"
SCORE_KINDS = ("confidence", "entropy")
SCORE_SCALE = 1.0 / 65535
ENCODINGS = {MASKS: "label-map", "ids": "string-array", "positions": "array"} | dict.fromkeys(SCORE_KINDS, "score-map")
ENCODING_VERSION = 1
# Measured by tools/bench_store.py: level 9 makes masks smaller than PNG; scores are noisy, more effort gains little.
MASK_LEVEL, SCORE_LEVEL = 9, 4
PARTIAL = ".partial"


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
        """Return the name of the first field in which ``other`` differs, or None."""
        mine, theirs = self.to_dict(), other.to_dict()
        return next((key for key in mine if key not in but and mine[key] != theirs[key]), None)


class Encoded(NamedTuple):
    """One map as it lies in the file: a single chunk, deflated (two-byte values with HDF5's shuffle filter)."""

    data: bytes
    shape: tuple[int, int]
    dtype: np.dtype


def encode_mask(mask: np.ndarray) -> Encoded:
    """Compress a mask H x W, uint8 or uint16."""
    return _encode(mask, MASK_LEVEL)


def encode_score(score: np.ndarray) -> Encoded:
    """Compress a score map H x W in [0, 1] as 16-bit fixed point."""
    fixed = np.rint(np.clip(score, 0.0, 1.0) / SCORE_SCALE).astype(np.uint16)
    return _encode(fixed, SCORE_LEVEL)


def _encode(array: np.ndarray, level: int) -> Encoded:
    data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    raw = data.tobytes() if data.itemsize == 1 else data.view(np.uint8).reshape(-1, data.itemsize).T.tobytes()
    return Encoded(zlib.compress(raw, level), (array.shape[0], array.shape[1]), data.dtype)


def decode(encoded: Encoded) -> np.ndarray:
    """Return the array that was compressed."""
    raw = np.frombuffer(zlib.decompress(encoded.data), np.uint8)
    if encoded.dtype.itemsize > 1:
        raw = np.ascontiguousarray(raw.reshape(encoded.dtype.itemsize, -1).T)
    return raw.view(encoded.dtype).reshape(encoded.shape)


def write_map(group: h5py.Group, key: str, encoded: Encoded) -> None:
    """Create the dataset ``key`` of ``group`` from an already compressed map."""
    dataset = group.create_dataset(
        key,
        shape=encoded.shape,
        dtype=encoded.dtype,
        chunks=encoded.shape,
        compression="gzip",
        compression_opts=MASK_LEVEL,
        shuffle=encoded.dtype.itemsize > 1,
        track_times=False,
    )
    dataset.id.write_direct_chunk((0, 0), encoded.data)


def read_map(group: h5py.Group, key: str) -> Encoded | np.ndarray:
    """Return the map ``key`` of ``group``: raw if it lies as our writer leaves it, else as an array."""
    dataset = h5py.h5d.open(group.id, key.encode())
    properties = dataset.get_create_plist()
    dtype = dataset.dtype
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    ours = [h5py.h5z.FILTER_DEFLATE] if dtype.itemsize == 1 else [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE]
    if filters == ours and properties.get_chunk() == dataset.shape:
        mask, data = dataset.read_direct_chunk((0, 0))
        if mask == 0:
            return Encoded(data, dataset.shape, dtype)
    return h5py.Dataset(dataset)[()]


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
        head = json.dumps([name, kind, array.dtype.str.lstrip("<|"), list(array.shape)])
        self.digest.update(head.encode() + b"\n")
        self.digest.update(np.ascontiguousarray(array).tobytes())

    def hexdigest(self) -> str:
        return self.digest.hexdigest()


def write_head(file: h5py.File, header: StoreHeader, kinds: Iterable[str]) -> dict[str, h5py.Group]:
    """Write the root attributes and return a new group for each kind."""
    file.attrs["format"], file.attrs["format_version"] = FORMAT, VERSION
    file.attrs["program_version"] = __version__
    for name, value in header.to_dict().items():
        file.attrs[name] = json.dumps(value) if isinstance(value, list) else value
    groups = {}
    for kind in kinds:
        group = groups[kind] = file.create_group(kind)
        group.attrs["encoding_type"], group.attrs["encoding_version"] = ENCODINGS[kind], ENCODING_VERSION
        if kind in SCORE_KINDS:
            group.attrs["scale"] = SCORE_SCALE
    return groups


def write_ids(file: h5py.File, ids: list[str], positions: Iterable[int]) -> None:
    """Write the ids in order, and the position of each among all shards' ids."""
    for name, values, dtype in (("ids", ids, h5py.string_dtype()), ("positions", list(positions), np.int64)):
        dataset = file.create_dataset(name, data=values, dtype=dtype, track_times=False)
        dataset.attrs["encoding_type"], dataset.attrs["encoding_version"] = ENCODINGS[name], ENCODING_VERSION


def read_header(file: h5py.File) -> StoreHeader:
    """Return the header from the root attributes."""
    record = {name: _plain(file.attrs[name]) for name in (field.name for field in fields(StoreHeader))}
    record |= {name: json.loads(record[name]) for name in ("classes", "palette")}
    return StoreHeader.from_dict(record)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
