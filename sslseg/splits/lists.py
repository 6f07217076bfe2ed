"""Published lists of labeled and unlabeled images: reading their formats, and matching them with a dataset."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sslseg.data.description import Listing
from sslseg.data.layouts.base import stem
from sslseg.errors import UserError
from sslseg.splits.draw import labeled_count

NAME_ENDS = ("_leftImg8bit", "_gtFine_labelTrainIds", "_gtFine_labelIds", "_gtFine")
PICKLE_START = b"\x80"
PICKLED_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class IdList:
    """Ids read from a list file; a ``permutation`` orders the whole training set and must still be cut."""

    ids: list[str]
    permutation: bool = False


def read_list(path: Path, known: Sequence[str], *, train: Sequence[str] = (), may_be_empty: bool = False) -> IdList:
    """Read a list in any of the published formats and return the matching ids of ``known``.

    A line is an id, an image path, or an image path and a mask path; a leading slash, CRLF and a missing last newline
    are accepted. A pickle holds a permutation of the training ids ``train``, in their order. An entry matches the id that
    equals the longest end of its path (``jena/jena_000078_000019`` or ``jena_000078_000019``).

    Raises:
        UserError: naming file and line of an entry that matches no id or several, or that is repeated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"list {path} cannot be read ({error.strerror}); check its path") from error
    if data.startswith(PICKLE_START):
        return IdList([train[index] for index in _permutation(path, data, len(train))], permutation=True)
    index = _index(known)
    ids: dict[str, int] = {}
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"list {path} is neither text nor a pickle; give a list of ids or paths") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        # One column may hold spaces only when a tab separates it from the next.
        entry = line.split("\t")[0].strip() if "\t" in line else line.split()[0]
        name = _match(entry, index, f"{path}:{number}")
        if name in ids:
            raise UserError(
                f"{path}:{number} names {name!r} again (first in line {ids[name]}); remove one of the lines"
            )
        ids[name] = number
    if not ids and not may_be_empty:
        raise UserError(f"list {path} is empty; give one with at least one id")
    return IdList(list(ids))


def with_val_list(listing: Listing, path: Path) -> Listing:
    """Return the listing with the images of a list as its validation images, and all others as training images."""
    known = listing.train | listing.val
    names = read_list(path, list(known), may_be_empty=True).ids
    val = {name: known[name] for name in names}
    return replace(listing, train={name: sample for name, sample in known.items() if name not in val}, val=val)


def labeled_from_list(path: Path, listing: Listing, *, ratio: str | None, count: int | None) -> list[str]:
    """Return the labeled ids of a list; ``ratio`` or ``count`` cut a permutation."""
    entries = read_list(path, list(listing.train | listing.val), train=listing.listed or list(listing.train))
    names = entries.ids
    if entries.permutation:
        names = names[: labeled_count(len(names), ratio=ratio, count=count)]
    elif ratio is not None or count is not None:
        raise UserError(f"--labeled-list {path} names the images itself; leave --ratio and --count out")
    else:
        _check_not_val(names, listing, path)
    without = [name for name in names if listing.train[name].mask is None]
    if without:
        raise UserError(f"list {path} names {without[0]!r} as labeled, which has no mask; add it or fix the list")
    return names


def unlabeled_from_list(path: Path, listing: Listing, labeled: Sequence[str]) -> list[str]:
    """Return the unlabeled ids of a list."""
    names = read_list(path, list(listing.train | listing.val)).ids
    _check_not_val(names, listing, path)
    taken = set(labeled)
    both = [name for name in names if name in taken]
    if both:
        raise UserError(f"list {path} names {both[0]!r}, which is labeled too ({len(both)} such); fix one of the lists")
    return names


def _check_not_val(names: Sequence[str], listing: Listing, path: Path) -> None:
    wrong = [name for name in names if name in listing.val]
    if wrong:
        raise UserError(
            f"list {path} names {wrong[0]!r}, which is a validation image ({len(wrong)} such); training on it would be cheating"
        )


def _tails(name: str) -> list[str]:
    """Return the ends of a path, longest first."""
    parts = PurePosixPath(name.lstrip("/")).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _index(known: Iterable[str]) -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for name in known:
        for tail in _tails(name):
            index.setdefault(tail, []).append(name)
    return index


def _match(entry: str, index: dict[str, list[str]], where: str) -> str:
    name = stem(entry.removeprefix("./"))
    for end in ("", *NAME_ENDS):
        if not name.endswith(end):
            continue
        for tail in _tails(name.removesuffix(end)):
            found = index.get(tail, [])
            exact = [candidate for candidate in found if candidate == tail]
            if len(exact or found) == 1:
                return (exact or found)[0]
            if found:
                raise UserError(f"{where}: {entry!r} could be {found[0]!r} or {found[1]!r}; write the longer path")
    raise UserError(f"{where}: {entry!r} is not an image of the dataset; check that list and dataset belong together")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def _permutation(path: Path, data: bytes, size: int) -> list[int]:
    try:
        array = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # unpickling unknown bytes can raise anything; only arrays are built
        raise UserError(
            f"list {path} is a pickle of something other than an array ({error}); it was not loaded"
        ) from error
    integers = isinstance(array, np.ndarray) and array.dtype.kind in "iu"
    if not integers or not np.array_equal(np.sort(array.ravel()), np.arange(size)):
        raise UserError(
            f"list {path} is not a permutation of the {size} training images; it belongs to another dataset"
        )
    return [int(value) for value in array.ravel()]
