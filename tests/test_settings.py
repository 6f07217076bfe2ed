"""Settings are written once: every one of every method has a meaning, choices are enforced, typos are found."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest

from sslseg.errors import UserError
from sslseg.registry import MODELS
from sslseg.settings import DEFAULTS, Setting, checked, complete, settings_of
from tests.methods.conftest import methods, segmentor


def refused(message: str) -> Any:
    """Expect a UserError that contains ``message``."""
    return pytest.raises(UserError, match=re.escape(message))


def every_setting(target: type, prefix: str = "method") -> Iterator[tuple[str, Setting]]:
    """Yield the settings of a class and those within them, each with its dotted name."""
    for name, setting in settings_of(target).items():
        yield f"{prefix}.{name}", setting
        if setting.fields is not None:
            yield from every_setting(setting.fields, f"{prefix}.{name}")


@pytest.mark.parametrize("name", methods())
def test_every_setting_has_a_meaning_and_a_valid_default(name: str) -> None:
    for dotted, setting in every_setting(MODELS.get(name)):
        assert setting.doc.endswith("."), dotted
        assert "\n" not in setting.doc, dotted
        assert setting.default is not inspect.Parameter.empty, dotted
        assert not setting.choices or setting.default in setting.choices, dotted


@pytest.mark.parametrize("name", methods())
def test_choices_are_enforced(name: str) -> None:
    target, config = MODELS.get(name), segmentor()
    for setting in settings_of(target).values():
        if setting.choices:
            message = f"method.{setting.name} 'nonsense' is unknown; use one of: {', '.join(map(str, setting.choices))}"
            with refused(message):
                target(segmentor=config, **{setting.name: "nonsense"})
            with refused(message):
                complete(target, {setting.name: "nonsense"})


@pytest.mark.parametrize("name", methods())
def test_unknown_names_are_refused(name: str) -> None:
    target = MODELS.get(name)
    for setting in settings_of(target).values():
        with refused(f"method.{setting.name}x is not a setting of {name}; did you mean {setting.name!r}? known: "):
            complete(target, {f"{setting.name}x": 1})
    with refused(f"method.qqq is not a setting of {name}; known: "):
        complete(target, {"qqq": 1})


@pytest.mark.parametrize("name", methods())
def test_defaults_complete_themselves(name: str) -> None:
    target = MODELS.get(name)
    completed = complete(target, {})
    assert list(completed) == list(settings_of(target))
    assert complete(target, completed) == completed


def check_renamed(target: type, old: dict[str, Any]) -> None:
    settings = settings_of(target)
    for name, new in old.items():
        if isinstance(new, dict):
            fields = settings[name].fields
            assert fields is not None, name
            check_renamed(fields, new)
        else:
            assert name not in settings, name
            assert new is None or new in settings, name


@pytest.mark.parametrize("name", methods())
def test_old_names_lead_to_settings_of_today(name: str) -> None:
    target = MODELS.get(name)
    check_renamed(target, target.old_settings)


class Part:
    @checked("method.part")
    def __init__(self, *, size: Annotated[int, "How large."] = 3, kind: Annotated[Literal["a", "b"], "Which."] = "a"):
        self.size, self.kind = size, kind


class Sample:
    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        needed: Annotated[float, "Has no default."],
        part: Annotated[dict[str, Any], Part, "Settings of the part."] = DEFAULTS,  # type: ignore[assignment]
        other: Annotated[dict[str, Any] | None, Part, "Another part, or none."] = None,
        kind: Annotated[Literal["a", "b", None], "Which, or none."] = None,
    ) -> None:
        self.part = Part(**part)


def test_settings_within_settings_are_completed_and_checked() -> None:
    assert complete(Sample, {"needed": 1.0}) == dict(needed=1.0, part=dict(size=3, kind="a"), other=None, kind=None)
    assert complete(Sample, {"needed": 1.0, "other": {"size": 4}})["other"] == dict(size=4, kind="a")
    assert settings_of(Sample)["kind"].choices == ("a", "b", None)
    assert settings_of(Sample)["part"] == Setting("part", DEFAULTS, "Settings of the part.", (), Part)
    with refused("method.needed is missing: Sample has no default for it"):
        complete(Sample, {})
    with refused("method.part.sizes is not a setting of Part; did you mean 'size'"):
        complete(Sample, {"needed": 1.0, "part": {"sizes": 4}})
    with refused("method.part.kind 'c' is unknown; use one of: a, b"):
        complete(Sample, {"needed": 1.0, "part": {"kind": "c"}})
    with refused("method.part.kind 'c' is unknown; use one of: a, b"):
        Sample(segmentor={}, needed=1.0, part={"kind": "c"})
    with refused("method.kind 'c' is unknown; use one of: a, b, None"):
        Sample(segmentor={}, needed=1.0, kind="c")  # type: ignore[arg-type]


def test_a_subclass_inherits_the_checks() -> None:
    class Child(Sample):
        pass

    with refused("method.kind 'c'"):
        Child(segmentor={}, needed=1.0, kind="c")  # type: ignore[arg-type]


class Base:
    def __init__(self, *, segmentor: Any, first: Annotated[int, "One."] = 1, second: int = 2) -> None: ...


class Further(Base):
    def __init__(self, *, third: Annotated[int, "Three."] = 3, second: int = 5, **settings: Any) -> None: ...


class Silent(Further):
    pass


class Closed(Base):
    def __init__(self, *, segmentor: Any, third: int = 3) -> None: ...


@pytest.mark.parametrize("target", [Further, Silent])
def test_settings_are_inherited_where_init_takes_them(target: type) -> None:
    found = settings_of(target)
    assert {name: setting.default for name, setting in found.items()} == dict(first=1, second=5, third=3)
    assert found["first"].doc == "One."
    assert list(settings_of(Closed)) == ["third"]
