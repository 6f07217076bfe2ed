"""The folder of an unfinished store: its header and finished segments, each written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from sslseg.errors import UserError
from sslseg.files import atomic_write, write_json
from sslseg.progress import note
from sslseg.store.format import IMAGE_SCORES, VERSION, Encoded, MapKind, StoreHeader, create_file, keys, write_head
from sslseg.store.maps import MapWriter

HEADER = "header.json"


def partial_path(path: Path) -> Path:
    """Return the folder that holds an unfinished store's segments."""
    return path.with_name(path.name + ".partial")


class Segments:
    """The segments in ``folder``; a segment's name holds the rank and the SHA-256 of its bytes, so damage shows."""

    def __init__(
        self, folder: Path, header: StoreHeader, kinds: Mapping[str, MapKind], image_scores: Sequence[str]
    ) -> None:
        self.folder, self.header, self.kinds, self.image_scores = folder, header, kinds, tuple(image_scores)

    def begin(self, ids: Sequence[str], positions: Sequence[int], *, join: bool) -> None:
        """Make the folder, or with ``join`` continue one with equal header, kinds, scores of images and ids.

        Raises:
            UserError: there is one already and ``join`` is False, or it is damaged, of another version, or differs.
        """
        record = dict(
            version=VERSION,
            header=self.header.to_dict(),
            kinds={name: kind.attributes() for name, kind in self.kinds.items()},
            image_scores=list(self.image_scores),
            ids=list(ids),
            positions=list(positions),
        )
        target = self.folder / HEADER
        if not target.exists() and not self.paths():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(target, record)
            return
        if not join:
            raise UserError(
                f"{self.folder} holds an unfinished store; continue it with --resume, write another with --out, or"
                " remove the folder"
            )
        try:
            found = json.loads(target.read_text())
            version = found.get("version", 1)
            if version != VERSION:
                raise UserError(
                    f"{self.folder} is an unfinished store of format version {version}, this program writes version"
                    f" {VERSION}; remove the folder and start again"
                )
            found.setdefault("image_scores", [])  # earlier versions had none
            differing = self.header.difference(StoreHeader.from_dict(found["header"]))
            differing = differing or next(
                (key for key in record if key != "header" and found[key] != record[key]), None
            )
        except UserError:
            raise
        except (FileNotFoundError, AttributeError, ValueError, KeyError) as error:
            raise UserError(f"{target} is missing or damaged; remove the folder and start again") from error
        if differing:
            raise UserError(
                f"{self.folder} is an unfinished store that differs in {differing}; write another with --out, or remove"
                " the folder"
            )

    @contextlib.contextmanager
    def lock(self, rank: int) -> Iterator[IO[str]]:
        """Refuse other processes of the same rank, such as a job that still runs when it is resumed."""
        with (self.folder / f".{rank:04d}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"another process is writing {self.folder}; wait until it ends, or write another with --out"
                ) from error
            except OSError:
                note(f"{self.folder}: the file system has no locks; let only one process write this store")
            yield file

    def clean(self) -> None:
        """Remove files that a killed process left half written, and damaged segments; report the latter."""
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        for path in self.paths():
            if hashlib.sha256(path.read_bytes()).hexdigest()[:32] != path.stem.partition("-")[2]:
                path.unlink()
                note(f"segment {path} is damaged and was removed; its images are predicted again")

    def paths(self) -> list[Path]:
        """Return the finished segments."""
        return sorted(self.folder.glob("*.h5"))

    def write(
        self, rank: int, maps: dict[str, dict[str, Encoded]], image_scores: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Write one segment: the encoded maps of each id by kind, and the scores of each id by their names."""
        # In memory, so that we write the file in one go. (HDF5's own file images are broken before 2.0.)
        image = io.BytesIO()
        with create_file(image) as file:
            columns = {
                score: np.array([image_scores[name][score] for name in maps], np.float32) for score in self.image_scores
            }
            positions = range(len(maps))
            write_head(file, self.header, self.kinds, ids=list(maps), positions=positions, image_scores=columns)
            names, output = keys(maps), MapWriter(file, self.kinds)
            for name, found in maps.items():
                for kind, encoded in found.items():
                    output.write(kind, names[name], encoded)
        path = self.folder / f"{rank:04d}-{hashlib.sha256(image.getbuffer()).hexdigest()[:32]}.h5"
        try:
            with atomic_write(path) as target:
                target.write(image.getbuffer())
        except OSError as error:
            # The error of a failed write, unlike that of a failed open, does not name the file.
            error.filename = error.filename or str(path)
            raise

    def places(self) -> dict[str, tuple[Path, str]]:
        """Return the segment that holds each finished id, and the id's key in it."""
        found: dict[str, tuple[Path, str]] = {}
        for path in self.paths():
            with h5py.File(path, "r", locking=False) as file:
                names = file["ids"].asstr()[()].tolist()
            found |= {name: (path, key) for name, key in keys(names).items()}
        return found

    def read_image_scores(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the scores of finished ids, N float32 each, by their names."""
        found: dict[str, dict[str, float]] = {score: {} for score in self.image_scores}
        for path in self.paths() if found else ():
            with h5py.File(path, "r", locking=False) as file:
                names = file["ids"].asstr()[()].tolist()
                for score, values in found.items():
                    values |= zip(names, file[f"{IMAGE_SCORES}/{score}"][()].tolist(), strict=True)
        return {score: np.array([values[name] for name in ids], np.float32) for score, values in found.items()}
