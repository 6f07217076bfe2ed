"""Writing a prediction store: finished segments beside it, merged into one file at the end.

While a store is made, ``NAME.h5.partial/`` holds ``header.json`` and segments, small HDF5 files that are each written
whole or not at all. A kill or a full disk loses at most the images since the last segment, and the store itself appears
under its name only when it is complete.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from sslseg.errors import UserError
from sslseg.files import atomic_write, write_json
from sslseg.store.format import (
    MASKS,
    PARTIAL,
    Digest,
    Encoded,
    StoreHeader,
    decode,
    encode_mask,
    encode_score,
    keys,
    read_map,
    write_head,
    write_ids,
    write_map,
)

SEGMENT_IMAGES, SEGMENT_SECONDS = 256, 20.0
QUEUE_IMAGES = 32
HEADER = "header.json"
Maps = dict[str, Encoded]


def partial_path(path: Path) -> Path:
    """Return the folder that holds an unfinished store's segments."""
    return path.with_name(path.name + PARTIAL)


class StoreWriter:
    """Writes one store; several ranks may write into the same one, and rank 0 finishes it.

    Args:
        ids: every id that the finished store shall hold, in order.
        positions: place of each id among the ids of all shards; 0, 1, 2, ... by default.
        kinds: ``masks`` and any of ``confidence`` and ``entropy``.
        resume: go on with an unfinished store of equal header and ids; ranks above 0 always join one.

    Compression and writing happen on a thread of their own; its errors come up at the next ``add`` or at the end.

    Raises:
        UserError: there is a store or an unfinished one already, or ``resume`` finds one that differs.
    """

    def __init__(
        self,
        path: Path,
        *,
        header: StoreHeader,
        ids: Sequence[str],
        positions: Sequence[int] | None = None,
        kinds: Sequence[str] = (MASKS,),
        resume: bool = False,
        rank: int = 0,
    ) -> None:
        self.path, self.header, self.ids, self.kinds, self.rank = path, header, list(ids), tuple(kinds), rank
        self.positions = list(positions) if positions is not None else list(range(len(self.ids)))
        self.partial = partial_path(path)
        record = dict(header=header.to_dict(), ids=self.ids, positions=self.positions, kinds=list(self.kinds))
        if path.exists():
            raise UserError(f"store {path} exists; give another with --out, or remove it")
        if self.partial.exists():
            if not (resume or rank):
                raise UserError(
                    f"{self.partial} holds an unfinished store; add --resume to go on, or remove the folder"
                )
            self._check(record)
        else:
            self.partial.mkdir(parents=True)
            write_json(self.partial / HEADER, record)
        if rank == 0:
            for leftover in self.partial.glob(".*.tmp"):
                leftover.unlink()
        self.done: set[str] = {name for segment in self._segments() for name in segment}
        self._items: queue.Queue[tuple[str, dict[str, np.ndarray]] | None] = queue.Queue(QUEUE_IMAGES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def _check(self, record: dict[str, Any]) -> None:
        try:
            found = json.loads((self.partial / HEADER).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.partial} has no readable {HEADER}; remove the folder and begin anew") from error
        mine = StoreHeader.from_dict(record["header"])
        differing = mine.difference(StoreHeader.from_dict(found["header"]))
        differing = differing or next((key for key in ("ids", "kinds") if found[key] != record[key]), None)
        if differing:
            raise UserError(
                f"{self.partial} is an unfinished store of another {differing}; give another file with --out, or remove the folder"
            )

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What was added before an error or an interruption is kept, too.
        self.close()

    def add(self, name: str, *, mask: np.ndarray, **scores: np.ndarray) -> None:
        """Hand over the maps of one image: ``mask`` H x W integer, scores H x W in [0, 1]."""
        self._raise()
        wide = self.header.ignore_index > np.iinfo(np.uint8).max
        self._items.put((name, {MASKS: mask.astype(np.uint16 if wide else np.uint8), **scores}))

    def close(self) -> None:
        """Write what is left and stop the thread; further calls do nothing."""
        if self._thread.is_alive():
            self._items.put(None)
            self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        segment: dict[str, Maps] = {}
        since = time.monotonic()
        try:
            while (item := self._items.get()) is not None:
                name, maps = item
                segment[name] = {kind: _encode(kind, maps[kind]) for kind in self.kinds}
                if len(segment) >= SEGMENT_IMAGES or time.monotonic() - since >= SEGMENT_SECONDS:
                    self._write(segment)
                    segment, since = {}, time.monotonic()
            if segment:
                self._write(segment)
        except BaseException as error:
            self._error = error
            # Keep taking items, so that nobody waits for a full queue; the next add raises.
            while self._items.get() is not None:
                pass

    def _write(self, segment: dict[str, Maps]) -> None:
        number = sum(1 for _ in self.partial.glob(f"{self.rank:04d}-*.h5"))
        with h5py.File("segment", "w", driver="core", backing_store=False, libver="latest") as file:
            groups = write_head(file, self.header, self.kinds)
            write_ids(file, list(segment), range(len(segment)))
            names = keys(segment)
            for name, maps in segment.items():
                for kind, encoded in maps.items():
                    write_map(groups[kind], names[name], encoded)
            file.flush()
            image = file.id.get_file_image()
        with atomic_write(self.partial / f"{self.rank:04d}-{number:06d}.h5") as output:
            output.write(image)
        self.done.update(segment)

    def _segments(self) -> Iterator[list[str]]:
        for path in sorted(self.partial.glob("*.h5")):
            try:
                with h5py.File(path, "r", locking=False) as file:
                    yield [name.decode() for name in file["ids"][()]]
            except (OSError, KeyError):
                # Segments appear whole; this one was damaged afterwards, and its images are predicted again.
                path.unlink(missing_ok=True)

    def finalize(self) -> Path:
        """Merge the segments into the store and remove them; only one process may do so, after all have closed.

        Raises:
            UserError: an id is still missing.
        """
        self.close()
        files = [h5py.File(path, "r", locking=False) for path in sorted(self.partial.glob("*.h5"))]
        try:
            places: dict[str, tuple[h5py.File, str]] = {}
            for file in files:
                names = [name.decode() for name in file["ids"][()]]
                paths = keys(names)
                places.update({name: (file, paths[name]) for name in names})
            missing = [name for name in self.ids if name not in places]
            if missing:
                raise UserError(
                    f"store {self.path} lacks {len(missing)} of {len(self.ids)} ids, such as {missing[0]!r}; go on with --resume"
                )

            def maps() -> Iterator[tuple[str, dict[str, Encoded | np.ndarray]]]:
                for name in self.ids:
                    file, key = places[name]
                    yield name, {kind: read_map(file[kind], key) for kind in self.kinds}

            write_store(self.path, self.header, self.ids, self.positions, self.kinds, maps())
        finally:
            for file in files:
                file.close()
        shutil.rmtree(self.partial)
        return self.path


def _encode(kind: str, array: np.ndarray) -> Encoded:
    return encode_mask(array) if kind == MASKS else encode_score(array)


def write_store(
    path: Path,
    header: StoreHeader,
    ids: Sequence[str],
    positions: Sequence[int],
    kinds: Sequence[str],
    maps: Iterable[tuple[str, dict[str, Encoded | np.ndarray]]],
) -> None:
    """Write a complete store in one pass; compressed maps are copied as they are. It appears under its name at the end.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        digest = Digest()
        with h5py.File(temporary, "w", libver="latest") as file:
            groups = write_head(file, header, kinds)
            write_ids(file, list(ids), positions)
            names = keys(ids)
            for name, found in maps:
                for kind in sorted(found):
                    item = found[kind]
                    encoded = item if isinstance(item, Encoded) else _encode(kind, item)
                    write_map(groups[kind], names[name], encoded)
                    digest.add(name, kind, decode(encoded))
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
