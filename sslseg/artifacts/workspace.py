"""The working folder: ``sslseg.toml``, the newest split and the newest run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslseg.artifacts.run import RECORD
from sslseg.data.description import DatasetDescription
from sslseg.errors import UserError
from sslseg.splits.split import FILE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOML = "sslseg.toml"
NUMBER = (int, float)
RENAMED = {"iters": "iterations"}  # keys of version 0.1
KEYS: dict[str, dict[str, Any]] = {
    "dataset": dict(layout=str, root=str, name=str, classes=list, palette=list, ignore_index=int, options=dict),
    "train": dict(
        method=str,
        config=str,
        model=str,
        pretrained=str,
        device=str,
        iterations=int,
        epochs=int,
        batch_size=int,
        lr=NUMBER,
        crop=(int, str),
        seed=int,
        workers=int,
        val_interval=int,
    ),
    "folders": dict(splits=str, runs=str),
}


@dataclass(frozen=True)
class Workspace:
    """A working folder and what its ``sslseg.toml`` sets."""

    folder: Path
    settings: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, folder: Path | None = None) -> Workspace:
        """Read ``sslseg.toml`` of ``folder`` (the current one), if it is there.

        Raises:
            UserError: it is not valid TOML, or a section, key or type is wrong.
        """
        folder = folder or Path()
        path = folder / TOML
        try:
            settings = tomllib.loads(path.read_text())
        except FileNotFoundError:
            return cls(folder, {})
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UserError(
                f"{path} cannot be read: {error}; fix it, or recreate it with `sslseg init --force`"
            ) from error
        for section, values in list(settings.items()):
            if section not in KEYS or not isinstance(values, dict):
                raise UserError(
                    f"{path}: {section!r} is unknown; the sections are {', '.join(f'[{name}]' for name in KEYS)}"
                )
            values = settings[section] = {RENAMED.get(key, key): value for key, value in values.items()}
            for key, value in values.items():
                if key not in KEYS[section]:
                    raise UserError(f"{path}: [{section}] has no key {key!r}; its keys are {', '.join(KEYS[section])}")
                expected = KEYS[section][key]
                if not isinstance(value, expected) or isinstance(value, bool):
                    kinds = expected if isinstance(expected, tuple) else (expected,)
                    raise UserError(
                        f"{path}: {key} = {value!r} in [{section}] must be {' or '.join(k.__name__ for k in kinds)}"
                    )
        return cls(folder, settings)

    def description(self) -> DatasetDescription:
        """Return the dataset of ``sslseg.toml``, or the built-in synthetic dataset when there is none.

        Raises:
            UserError: a key that every dataset needs is missing.
        """
        from sslseg.data.labels import default_palette
        from sslseg.data.layouts import layout_module, shapes

        record = self.settings.get("dataset")
        if record is None:
            return shapes.describe(self.folder / shapes.DEFAULT_ROOT)
        missing = [key for key in ("layout", "root", "classes") if key not in record]
        if missing:
            raise UserError(
                f"{self.folder / TOML}: [dataset] lacks {missing[0]!r}; add it, or recreate the file with `sslseg init --force`"
            )
        layout_module(record["layout"])
        classes = tuple(map(str, record["classes"]))
        palette = record.get("palette") or default_palette(classes)
        return DatasetDescription(
            layout=record["layout"],
            root=str((self.folder / record["root"]).absolute()),
            name=record.get("name") or Path(record["root"]).name,
            classes=classes,
            palette=tuple((color[0], color[1], color[2]) for color in palette),
            ignore_index=record.get("ignore_index"),
            options=record.get("options", {}),
        )

    def train(self) -> dict[str, Any]:
        """Return the ``[train]`` table."""
        return self.settings.get("train", {})

    @property
    def splits(self) -> Path:
        return self.folder / self.settings.get("folders", {}).get("splits", "splits")

    @property
    def runs(self) -> Path:
        return self.folder / self.settings.get("folders", {}).get("runs", "runs")

    @property
    def untouched(self) -> bool:
        """True where neither a dataset nor a split has been chosen yet."""
        return "dataset" not in self.settings and not any(self.splits.glob(f"*/{FILE}"))

    def newest_split(self) -> Path:
        """Return the newest ``split.json`` of the working folder."""
        return _newest(self.splits, FILE, "split", "make one with `sslseg split --ratio 1/8`, or name one")

    def newest_run(self) -> Path:
        """Return the newest run directory of the working folder."""
        return _newest(self.runs, RECORD, "run", "make one with `sslseg train`, or name one").parent


def _newest(folder: Path, name: str, kind: str, hint: str) -> Path:
    found = sorted(folder.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise UserError(f"no {kind} in {folder.absolute()}; {hint}")
    return found[-1]
