"""Writing a prediction store: finished segments beside it, joined into one file at the end.

Until the store is complete, ``NAME.h5.partial/`` holds ``header.json`` and segments, small HDF5 files that are each
written whole or not at all. A kill or a full disk loses at most the images since the last segment, and the store itself
appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType

import h5py
import numpy as np

from sslseg.errors import UserError
from sslseg.progress import track
from sslseg.store.format import (
    LABEL_MAP,
    MASKS,
    Digest,
    Encoded,
    MapKind,
    StoreHeader,
    check_image_scores,
    check_kinds,
    create_file,
    decode,
    encode,
    in_order,
    keys,
    quantize,
    write_head,
)
from sslseg.store.maps import MapFile, MapWriter
from sslseg.store.segments import Segments, partial_path

SEGMENT_IMAGES, SEGMENT_SECONDS = 256, 20.0
QUEUE_IMAGES = 32
OPEN_SEGMENTS = 32
LONG_JOIN_IMAGES = 1000
Maps = dict[str, "Encoded | np.ndarray"]


class StoreWriter:
    """Writes one store; several ranks may write into the same one, and rank 0 finishes it.

    Rank 0 must create its writer before the others create theirs, and all of them before any adds an image: ``done``
    must be the same for all.

    Args:
        ids: every id of the finished store, in order; text without NUL.
        positions: place of each id among the ids of all shards; 0, 1, 2, ... by default.
        kinds: every kind of map by its name, ``masks`` among them; by default only masks.
        image_scores: names of the scores of whole images.
        resume: continue an unfinished store with equal header, kinds, scores and ids; ranks above 0 always join one.

    Compression and writing happen on a separate thread; its errors are raised by the next ``add`` or at the end.

    Raises:
        UserError: the store exists, finished or unfinished; ``resume`` finds one that differs; another process writes
            it; or a store cannot hold such ids or kinds.
    """

    def __init__(
        self,
        path: Path,
        *,
        header: StoreHeader,
        ids: Sequence[str],
        positions: Sequence[int] | None = None,
        kinds: Mapping[str, MapKind] | None = None,
        image_scores: Sequence[str] = (),
        resume: bool = False,
        rank: int = 0,
    ) -> None:
        if path.exists():
            raise UserError(f"store {path} exists; write another with --out, or remove it")
        _check_ids(path, ids)
        kinds = {MASKS: LABEL_MAP} if kinds is None else kinds
        check_kinds(kinds)
        check_image_scores(image_scores)
        self.path, self.header, self.ids, self.kinds, self.rank = path, header, list(ids), in_order(kinds), rank
        self.positions = list(positions) if positions is not None else list(range(len(self.ids)))
        self._known = frozenset(self.ids)
        self.image_scores = sorted(image_scores)
        self._segments = Segments(partial_path(path), header, self.kinds, self.image_scores)
        self._segments.begin(self.ids, self.positions, join=resume or rank > 0)
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(self._segments.lock(rank))
        if rank == 0:
            self._segments.clean()
        self.done: set[str] = set(self._segments.places())
        self._items: queue.Queue[tuple[str, dict[str, np.ndarray], dict[str, float]] | None] = queue.Queue(QUEUE_IMAGES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Images added before an error or an interruption are kept, too.
        self.close()

    def add(
        self,
        name: str,
        image_scores: Mapping[str, float] = MappingProxyType({}),
        /,
        *,
        mask: np.ndarray,
        **others: np.ndarray,
    ) -> None:
        """Add the maps of one image: ``mask`` and other label maps H x W integer, scores H x W in [0, 1]; and its scores
        as a whole.

        Raises:
            ValueError: ``name`` is not one of the ids, the maps are not those of ``kinds`` or differ in size, or the scores
                are not those of ``image_scores`` in [0, 1].
            OSError: an earlier image could not be written.
        """
        self._raise()
        maps = {MASKS: mask, **others}
        if name not in self._known:
            raise ValueError(f"{name!r} is not one of the ids of store {self.path}")
        if set(maps) != set(self.kinds) or mask.ndim != 2 or any(found.shape != mask.shape for found in maps.values()):
            shapes = {kind: found.shape for kind, found in maps.items()}
            raise ValueError(f"store {self.path} takes {', '.join(self.kinds)}, each H x W; {name!r} has {shapes}")
        if sorted(image_scores) != self.image_scores or not all(0 <= value <= 1 for value in image_scores.values()):
            raise ValueError(
                f"store {self.path} takes {', '.join(self.image_scores) or 'no scores'} in [0, 1] of each image;"
                f" {name!r} has {dict(image_scores)}"
            )
        dtype = np.uint16 if self.header.ignore_index > np.iinfo(np.uint8).max else np.uint8
        for kind, labels in maps.items():
            if self.kinds[kind].is_score:
                continue
            if labels.dtype != dtype and labels.size and not 0 <= labels.min() <= labels.max() <= np.iinfo(dtype).max:
                raise ValueError(
                    f"{kind} of {name!r} has values from {labels.min()} to {labels.max()}, which {dtype.__name__}"
                    " cannot hold"
                )
            maps[kind] = labels.astype(dtype)
        self._items.put((name, maps, dict(image_scores)))

    def close(self) -> None:
        """Write the images that are left and stop the thread; further calls do nothing."""
        if self._thread.is_alive():
            self._items.put(None)
            self._thread.join()
        self._lock.close()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        segment: dict[str, dict[str, Encoded]] = {}
        scores: dict[str, dict[str, float]] = {}
        since = time.monotonic()
        items = iter(self._items.get, None)
        try:
            for name, maps, own in items:
                segment[name] = {kind: self._encode(kind, maps[kind]) for kind in self.kinds}
                scores[name] = own
                if len(segment) >= SEGMENT_IMAGES or time.monotonic() - since >= SEGMENT_SECONDS:
                    self._write(segment, scores)
                    segment, scores, since = {}, {}, time.monotonic()
            if segment:
                self._write(segment, scores)
        except BaseException as error:
            self._error = error
            # Keep emptying the queue, so that `add` never blocks; the next call of `add` raises.
            for _ in items:
                pass

    def _encode(self, name: str, array: np.ndarray) -> Encoded:
        kind = self.kinds[name]
        return encode(kind, quantize(array) if kind.is_score else array)

    def _write(self, segment: dict[str, dict[str, Encoded]], scores: dict[str, dict[str, float]]) -> None:
        self._segments.write(self.rank, segment, scores)
        self.done.update(segment)

    def finalize(self) -> Path:
        """Join the segments into the store and remove them; only one process may do so, after all have closed.

        Raises:
            UserError: an id is still missing.
        """
        self.close()
        with self._segments.lock(self.rank):
            self._segments.clean()
            places = self._segments.places()
            missing = [name for name in self.ids if name not in places]
            if missing:
                raise UserError(
                    f"store {self.path} lacks {len(missing)} of {len(self.ids)} ids, such as {missing[0]!r};"
                    " continue with --resume"
                )

            @functools.lru_cache(maxsize=OPEN_SEGMENTS)
            def segment(path: Path) -> MapFile:
                return MapFile(h5py.File(path, "r", locking=False))

            def maps() -> Iterator[tuple[str, Maps]]:
                for name in track(self.ids, "join", total=len(self.ids), enabled=len(self.ids) >= LONG_JOIN_IMAGES):
                    path, key = places[name]
                    yield name, {kind: segment(path).read(kind, key) for kind in self.kinds}

            temporary = self._segments.folder / ".store.tmp"
            write_store(
                self.path,
                self.header,
                self.ids,
                self.positions,
                self.kinds,
                maps(),
                image_scores=self._segments.read_image_scores(self.ids),
                temporary=temporary,
            )
            shutil.rmtree(self._segments.folder)
        return self.path


def _check_ids(path: Path, ids: Sequence[str]) -> None:
    if not ids:
        raise UserError(f"store {path} would hold no image; give at least one")
    if len(set(ids)) != len(ids):
        raise UserError(f"store {path} would hold an id twice; give every image once")
    for name in ids:
        # A file name that is not UTF-8 reaches Python with surrogates in it.
        if not name or "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(
                f"id {name!r} is empty or not valid Unicode, so store {path} cannot hold it; rename the image"
            )


def write_store(
    path: Path,
    header: StoreHeader,
    ids: Sequence[str],
    positions: Sequence[int],
    kinds: Mapping[str, MapKind],
    maps: Iterable[tuple[str, Maps]],
    *,
    image_scores: Mapping[str, np.ndarray],
    temporary: Path,
) -> None:
    """Write a complete store in one pass; encoded maps are copied unchanged. It appears under its name at the end.

    **Shape**: each of ``image_scores`` N float32, in the order of ``ids``.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    try:
        digest = Digest()
        with create_file(temporary) as file:
            write_head(file, header, in_order(kinds), ids=ids, positions=positions, image_scores=image_scores)
            names, output = keys(ids), MapWriter(file, kinds)
            for name, found in maps:
                for kind in sorted(found):
                    item = found[kind]
                    if isinstance(item, Encoded):
                        encoded, array = item, decode(item)
                    else:
                        encoded, array = encode(kinds[kind], item), item
                    output.write(kind, names[name], encoded)
                    digest.add(name, kind, array)
            digest.add_image_scores(image_scores)
            file.attrs["content_sha256"] = digest.hexdigest()
            file.attrs["complete"] = True
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise _disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _disk_error(error: OSError | RuntimeError, path: Path) -> Exception:
    """Give an HDF5 error that the disk caused its errno, which HDF5 only mentions in its text."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if getattr(error, "errno", None) == number or f"errno = {number}" in str(error):
            return OSError(number, os.strerror(number), str(path))
    return error
