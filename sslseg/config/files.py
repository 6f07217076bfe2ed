"""Config files: which there are, and loading one."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

from sslseg import plugins
from sslseg.errors import UserError
from sslseg.registry import MODELS, register_modules

BROKEN = (OSError, SyntaxError, KeyError, TypeError, NameError, ValueError, ImportError, AttributeError, AssertionError)


def model_files() -> dict[str, Path]:
    """Return the presets that ``--model`` knows, by name."""
    prefix = "_base_/models/"
    return {name.removeprefix(prefix): path for name, path in plugins.config_files(f"{prefix}*.py").items()}


def load(path: Path) -> Any:
    """Load an mmengine config, also one whose ``_base_`` is ``mmseg::...``, ``sslseg::...`` or a plug-in's.

    Raises:
        UserError: it is broken, or a module of its ``custom_imports`` cannot be imported.
    """
    from mmengine.config import Config

    register_modules()
    plugins.import_from_working_folder()
    try:
        return Config.fromfile(str(path))
    except BROKEN as error:
        raise UserError(f"config {path} cannot be loaded: {_reason(error)}; fix the file") from error


def loads(text: str) -> Any:
    """Load the config that a checkpoint carries, and what its ``custom_imports`` name.

    Raises:
        UserError: it is broken, or a module of its ``custom_imports`` cannot be imported.
    """
    from mmengine.config import Config

    register_modules()
    plugins.import_from_working_folder()
    try:
        return Config.fromstring(text, file_format=".py")
    except BROKEN as error:
        raise UserError(
            f"the config of the checkpoint cannot be loaded: {_reason(error)}; install what it was trained with"
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, ImportError) and isinstance(error.__cause__, ImportError):
        return (
            f"{error.__cause__}, which its custom_imports name; install that package, or put the module into the working"
            " folder"
        )
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def load_named(name: str) -> Any:
    """Load a config by the name that ``--config`` knows, or a user's own by path."""
    known = plugins.config_paths()
    path = known.get(name, Path(name))
    if not path.is_file():
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? Known" if near else "known"
        raise UserError(f"config {name!r} is neither a known config nor a file; {hint}: {', '.join(known)}")
    return load(path)


def load_method(name: str) -> Any:
    """Load the default config of a method."""
    plugins.check_method(name)
    return load_named(f"{name}/{plugins.DEFAULT}")


def load_model(name: str) -> Any:
    """Return a config with the ``model`` of a preset (``--model NAME``) or of a user's own mmseg config (``--model PATH``).

    Beside ``model`` only its ``custom_imports`` are kept, where it has any.
    """
    presets = model_files()
    path = presets.get(name, Path(name))
    if path.suffix != ".py" or not path.is_file():
        known = ", ".join(sorted(presets))
        raise UserError(
            f"model {name!r} is neither a preset nor a config file; use --model with one of: {known}; or a path"
        )
    config = load(path)
    if "model" not in config:
        raise UserError(f"config {path} has no `model`; give an mmseg segmentor config")
    kept = {key: copy.deepcopy(config[key]) for key in ("model", "custom_imports") if key in config}
    return type(config)(unscoped(kept))


def merge_imports(config: Any, other: Any) -> None:
    """Add the ``custom_imports`` of ``other`` to those of ``config``, so that what it names can be built again later."""
    more = _imports(other)
    if more:
        config.custom_imports = dict(imports=list(dict.fromkeys(_imports(config) + more)), allow_failed_imports=False)


def _imports(config: Any) -> list[str]:
    names = (config.get("custom_imports") or {}).get("imports") or []
    return [names] if isinstance(names, str) else list(names)


def method_class(config: Any) -> Any:
    """Return the class that ``config.method.type`` names; UserError where there is none."""
    name = config.method.get("type")
    try:
        found = MODELS.get(name)
    except (RuntimeError, TypeError):
        found = None
    if found is None:
        raise UserError(
            f"method.type {name!r} is unknown; name the module that defines it in the config's custom_imports, or install"
            " the plug-in that brings it"
        )
    return found


def unscoped(config: Any) -> Any:
    """Remove the scope that mmengine notes in what ``mmseg::`` configs brought: our own networks are not found in it."""
    if isinstance(config, dict):
        config.pop("_scope_", None)
        for value in config.values():
            unscoped(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            unscoped(value)
    return config
