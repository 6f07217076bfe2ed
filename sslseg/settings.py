"""The settings of a class: the keyword-only parameters of its ``__init__``, each written once, with default and meaning.

    def __init__(self, *, mix: Annotated[Literal["cutmix", "cutout"], "How images are mixed."] = "cutmix") -> None:

A string in ``Annotated`` is the setting's meaning; a class in it says that the value is a dict of that class's settings;
``FollowsLength`` says how the value depends on the length of the training. ``Literal`` names the choices; ``**settings`` adds the
settings of the class that it inherits from. Config checks, ``sslseg methods NAME`` and the tables of the docs read them from here.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sslseg.errors import UserError

DEFAULTS: Mapping[str, Any] = MappingProxyType({})  # of a setting that is a dict of settings: all of its defaults
Init = TypeVar("Init", bound=Callable[..., None])


@dataclass(frozen=True)
class FollowsLength:
    """Mark of a setting whose value is made for a length of training (``Decay``, ``Duration``).

    Attributes:
        rescaled: called with a value and the length that it is made for, divided by that of the training; returns the value
            that means the same fraction of training.
    """

    rescaled: Callable[[Any, float], Any]


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        default: its value where a config does not give one; ``inspect.Parameter.empty`` where it must.
        doc: what it means.
        choices: the values that it may have; empty: any.
        fields: the class whose settings its value is a dict of.
        follows: how its value depends on the length of the training, if it does.
    """

    name: str
    default: Any
    doc: str = ""
    choices: tuple[Any, ...] = ()
    fields: type | None = None
    follows: FollowsLength | None = None


@functools.cache
def settings_of(target: type) -> Mapping[str, Setting]:
    """Return the settings of a class by name, in the order of its ``__init__``; ``segmentor`` is not one.

    Where ``__init__`` takes ``**settings``, those of the class that it inherits from come first.
    """
    owner, *inherited = (cls for cls in target.__mro__ if "__init__" in vars(cls))
    init = vars(owner)["__init__"]
    hints = get_type_hints(init, include_extras=True)
    found: dict[str, Setting] = {}
    for name, parameter in inspect.signature(init).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and inherited:
            return MappingProxyType({**settings_of(inherited[0]), **found})
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "segmentor":
            hint = hints.get(name, Any)
            extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            doc = next((extra for extra in extras if isinstance(extra, str)), "")
            fields = next((extra for extra in extras if isinstance(extra, type)), None)
            follows = next((extra for extra in extras if isinstance(extra, FollowsLength)), None)
            found[name] = Setting(name, parameter.default, doc, tuple(_choices(hint)), fields, follows)
    return MappingProxyType(found)


def _choices(hint: Any) -> Iterator[Any]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from _choices(parts[0])
    elif origin is Literal:
        yield from parts
    elif origin in (Union, UnionType) and any(get_origin(part) is Literal for part in parts):
        for part in parts:
            yield from [None] if part is type(None) else _choices(part)


def complete(target: type, values: Mapping[str, Any], *, where: str = "method") -> dict[str, Any]:
    """Return ``values`` with the defaults of all other settings, also of those within settings.

    Raises:
        UserError: there is no such setting, one that has no default is missing, or a value is not among its choices.
    """
    settings = settings_of(target)
    for name in values:
        if name not in settings:
            near = difflib.get_close_matches(name, settings, n=1)
            hint = f"did you mean {near[0]!r}? known" if near else "known"
            raise UserError(
                f"{where}.{name} is not a setting of {target.__name__}; {hint}: {', '.join(sorted(settings)) or 'none'}"
            )
    completed = {}
    for name, setting in settings.items():
        value = values.get(name, setting.default)
        if value is inspect.Parameter.empty:
            raise UserError(f"{where}.{name} is missing: {target.__name__} has no default for it; set it in the config")
        if value is None and "none" in setting.choices:
            value = "none"  # the command line reads the word as None
        check_choice(setting, value, where=where)
        if setting.fields is not None and isinstance(value, Mapping):
            value = complete(setting.fields, value, where=f"{where}.{name}")
        completed[name] = value
    return completed


def rescaled(
    target: type, values: Mapping[str, Any], ratio: float, *, literal: Iterable[str] = (), where: str = "method"
) -> dict[str, tuple[Any, Any]]:
    """Return the settings whose value changes with the length of the training, by dotted key, each as (stated, rescaled).

    Args:
        values: all settings (``complete``).
        ratio: the length that they are made for, divided by that of the training.
        literal: dotted keys that are left as they are.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name, setting in settings_of(target).items():
        key, value = f"{where}.{name}", values[name]
        if setting.fields is not None and isinstance(value, Mapping):
            found |= rescaled(setting.fields, value, ratio, literal=literal, where=key)
        elif setting.follows is not None and not any(_meet(key, other) for other in literal):
            new = setting.follows.rescaled(value, ratio)
            if new != value:
                found[key] = value, new
    return found


def _meet(key: str, other: str) -> bool:
    """Return whether one of two dotted keys is the other one, or lies within it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def check_choice(setting: Setting, value: Any, *, where: str = "method") -> None:
    """Raise UserError unless ``value`` is one of the setting's choices, where it has any."""
    if setting.choices and value not in setting.choices:
        known = ", ".join(map(str, setting.choices))
        raise UserError(f"{where}.{setting.name} {value!r} is unknown; use one of: {known}")


def checked(where: str = "method") -> Callable[[Init], Init]:
    """Decorate an ``__init__`` so that it refuses a value that is not among the choices of its setting."""

    def decorate(init: Init) -> Init:
        @functools.wraps(init)
        def wrapped(self: Any, *arguments: Any, **values: Any) -> None:
            owner = next(cls for cls in type(self).__mro__ if cls.__dict__.get("__init__") is wrapped)
            settings = settings_of(owner)
            for name, value in values.items():
                if name in settings:
                    check_choice(settings[name], value, where=where)
            init(self, *arguments, **values)

        return wrapped  # type: ignore[return-value]

    return decorate
