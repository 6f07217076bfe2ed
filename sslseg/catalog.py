"""What there is to choose from: methods with their settings, models, configs; read from the registry and the config folders."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sslseg.config.files import load_method, method_class
from sslseg.plugins import method_names
from sslseg.settings import Setting, settings_of


@dataclass(frozen=True)
class Method:
    """A method as ``--method NAME`` finds it."""

    name: str
    cls: Any
    config: Any

    @property
    def summary(self) -> str:
        """The first line of what its module says, else of its class."""
        text = inspect.getdoc(inspect.getmodule(self.cls)) or inspect.getdoc(self.cls) or ""
        return text.split("\n\n")[0].replace("\n", " ")

    def settings(self) -> Iterator[tuple[str, Setting, Any]]:
        """Yield key for ``--set``, setting, and value in the default config of every setting, also of those within settings.

        The value of a setting that holds settings is a mapping.
        """
        yield from _settings(self.cls, self.config.method, "method")


def _settings(cls: type, values: Any, prefix: str) -> Iterator[tuple[str, Setting, Any]]:
    for name, setting in settings_of(cls).items():
        value = (values or {}).get(name, setting.default)
        yield f"{prefix}.{name}", setting, value
        if setting.fields is not None:
            yield from _settings(setting.fields, value, f"{prefix}.{name}")


def find_method(name: str) -> Method:
    """Return a method by its name; UserError where there is none."""
    config = load_method(name)
    return Method(name, method_class(config), config)


def methods() -> list[Method]:
    """Return every method that ``--method`` knows, sorted by name."""
    return [find_method(name) for name in method_names()]
