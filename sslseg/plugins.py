"""Where methods come from: this package, installed packages that declare the entry-point group ``sslseg.methods``, and the
working folder.

An entry point names a package that registers its classes when it is imported and holds a folder ``configs`` of the form of
ours: ``configs/NAME/default.py`` makes ``--method NAME`` known. A config's ``custom_imports`` (mmengine) names modules
instead; they may lie in the working folder, and so may a folder ``configs``.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from sslseg.errors import UserError
from sslseg.progress import note

GROUP = "sslseg.methods"
OWN = "sslseg"
DEFAULT = "default"  # the config of a method that `--method` takes
AUTO = "auto"  # stands for one of the methods (`sslseg.config.auto`)


def entry_points() -> list[importlib.metadata.EntryPoint]:
    """Return the installed plug-ins, each once, sorted by name."""
    found = {point.value: point for point in importlib.metadata.entry_points(group=GROUP)}
    return sorted(found.values(), key=lambda point: point.name)


@functools.cache
def load() -> None:
    """Import every installed plug-in; one that cannot be imported is named and left out."""
    for point in entry_points():
        try:
            point.load()
        except Exception as error:
            reason = " ".join(str(error).split())
            note(f"plug-in {point.name!r} ({point.value}) is left out: {type(error).__name__}: {reason}")


def import_from_working_folder() -> None:
    """Let ``custom_imports`` find modules of the working folder, after everything that is installed."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)


@functools.cache
def own_configs() -> Path:
    """Return the folder of the shipped configs: inside an installed wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "_base_").is_dir():
            return candidate
    raise FileNotFoundError(f"sslseg's configs are missing beside {package}; reinstall sslseg")


def config_folders() -> dict[str, Path]:
    """Return the folders of configs by the name that ``_base_ = 'NAME::...'`` uses, those of sslseg first."""
    folders = {OWN: own_configs()}
    for point in entry_points():
        name = point.module.split(".")[0]
        try:
            found = importlib.util.find_spec(point.module)
        except ImportError:
            continue  # `load` names it
        for place in (found.submodule_search_locations or ()) if found is not None else ():
            if (folder := Path(place) / "configs").is_dir():
                folders.setdefault(name, folder)
    return folders


def find_config(name: str, path: str) -> Path | None:
    """Return the file of ``NAME::path``; None where NAME is neither sslseg nor a plug-in."""
    folder = config_folders().get(name)
    return None if folder is None else folder / path


def config_files(pattern: str) -> dict[str, Path]:
    """Return every config that matches, by name; sslseg's come first, and the first of a name wins."""
    found: dict[str, Path] = {}
    for folder in config_folders().values():
        for path in sorted(folder.glob(pattern)):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def config_paths() -> dict[str, Path]:
    """Return the configs that ``--config`` knows, such as ``supervised/default``, by name; the working folder's come last.

    There only folders with a default config count: ``configs`` may be another program's.
    """
    working = (
        path for default in sorted(Path("configs").glob(f"[!_]*/{DEFAULT}.py")) for path in default.parent.glob("*.py")
    )
    own = {f"{path.parent.name}/{path.stem}": path.absolute() for path in working}
    return own | config_files("[!_]*/*.py")


def method_names() -> list[str]:
    """Return the names that ``--method`` knows: those of folders with a ``default.py``."""
    names = {name.split("/")[0] for name in config_paths() if name.endswith(f"/{DEFAULT}")}
    return sorted(names - {AUTO})


def method_of(config: str) -> str:
    """Return the method in the name of a run: the folder of a known config, the stem of the user's own file."""
    return config.split("/")[0] if config in config_paths() else Path(config).stem


def check_method(name: str) -> None:
    """Raise UserError unless ``--method`` knows the name; nothing heavy is imported."""
    known = method_names()
    if name not in known:
        near = difflib.get_close_matches(name, [AUTO, *known], n=1)
        hint = f"did you mean {near[0]!r}? Use" if near else "use"
        raise UserError(f"method {name!r} is unknown; {hint} --method with one of: {', '.join([AUTO, *known])}")
