"""``sslseg methods``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslseg.cli.console import note, show

if TYPE_CHECKING:
    from sslseg.catalog import Method


def command(
    name: Annotated[
        str | None, typer.Argument(help="A method, to list its settings; by default all methods.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout instead of the names.")
    ] = False,
) -> None:
    """List the methods, or the settings of one, each a key for --set.

    Methods are those of this package, of installed plug-ins and of the working folder's configs; auto stands for one of them.
    Prints the names, one line; or, of one method, its name.
    """
    from sslseg.catalog import find_method, methods
    from sslseg.config.auto import recommendation
    from sslseg.plugins import AUTO

    auto = recommendation()
    if name is None:
        found = methods()
        record: dict[str, Any] = {AUTO: auto.summary} | {method.name: method.summary for method in found}
        _show_methods(found, {AUTO: auto.summary})
        _print(record, " ".join(record), as_json=as_json)
    else:
        if name == AUTO:
            note(f"{AUTO}: {auto.summary}")
        method = find_method(auto.recommended if name == AUTO else name)
        _show_settings(method)
        _print(_record(method), method.name, as_json=as_json)


def _print(record: dict[str, Any], line: str, *, as_json: bool) -> None:
    import json

    print(json.dumps(record, default=str) if as_json else line, flush=True)


def _record(method: Method) -> dict[str, Any]:
    settings = {
        key: dict(default=setting.default, value=value, choices=list(setting.choices), meaning=setting.doc)
        for key, setting, value in method.settings()
        if not isinstance(value, Mapping)
    }
    cls = method.cls
    return dict(
        method=method.name,
        summary=method.summary,
        settings=settings,
        predictors=list(cls.predictors),
        views=cls.views,
        optimizers=cls.optimizers,
        learns_from_stores=cls.needs_pseudo_masks,
        pipeline=list(cls.pipeline),
    )


def _show_methods(found: list[Method], more: dict[str, str]) -> None:
    from rich.table import Table

    table = Table("method", "command", "what it does")
    for name, summary in more.items():
        table.add_row(name, "train", summary)
    for method in found:
        table.add_row(method.name, "refine" if method.cls.needs_pseudo_masks else "train", method.summary)
    show(table, "Methods")


def _show_settings(method: Method) -> None:
    from rich.table import Column, Table

    table = Table(Column("key for --set", no_wrap=True), "value", "meaning")  # a key cut short cannot be copied
    for key, setting, value in method.settings():
        choices = f" One of: {', '.join(map(str, setting.choices))}." if setting.choices else ""
        table.add_row(key, "" if isinstance(value, Mapping) else str(value), setting.doc + choices)
    show(table, method.summary)
    note(f"predictors (pseudolabel --predictor): {', '.join(method.cls.predictors)}")
    note(f"pipeline (make {method.name}): {' | '.join(method.cls.pipeline)}")
