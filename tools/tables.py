"""Write the tables of docs/ from the program itself: options of commands, settings of methods: python tools/tables.py."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from pages import rewritten

from sslseg.catalog import Method, methods
from sslseg.cli.app import app
from sslseg.config.auto import recommendation

DOCS = Path(__file__).parent.parent / "docs"


def options(command: Any) -> str:
    """Return a Markdown table of a command's arguments and options."""
    rows = ["| argument or option | default | meaning |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        option = parameter.opts[0].startswith("--")
        name = parameter.opts[0] if option else (parameter.name or "").upper()
        if parameter.secondary_opts:
            name += f" / {parameter.secondary_opts[0]}"
        default = parameter.default
        shown = (
            ""
            if default is None or default is False or default == () or callable(default) or parameter.required
            else f"`{default}`"
        )
        rows.append(f"| `{name}` | {shown} | {parameter.help} |".replace("`True`", "on"))
    return "\n".join(rows)


def settings(method: Method) -> str:
    """Return a Markdown table of a method's settings: value in its default config, default in Python, meaning."""
    rows = [
        "| `--set` key | `NAME/default` | class default | meaning |".replace("NAME", method.name),
        "|---|---|---|---|",
    ]
    for key, setting, value in method.settings():
        choices = "".join(f", `{choice}`" for choice in setting.choices)
        nested = isinstance(value, Mapping)
        cells = ("", "") if nested else (f"`{plain(value)}`", f"`{plain(setting.default)}`")
        meaning = setting.doc + (f" One of {choices[2:]}." if choices else "")
        rows.append(f"| `{key}` | {cells[0]} | {cells[1]} | {meaning} |")
    return "\n".join(rows) if len(rows) > 2 else "This method has no settings of its own."


def plain(value: Any) -> str:
    """Return a value as ``--set`` takes it; tuples and lists look alike."""
    return json.dumps(value) if isinstance(value, (list, tuple)) else str(value)


def overview(found: list[Method]) -> str:
    """Return a Markdown table of all methods."""
    rows = [
        "| method | what it does |",
        "|---|---|",
        f"| [`auto`](commands/train.md#auto) | {recommendation().summary} |",
    ]
    return "\n".join(
        [*rows, *(f"| [`{method.name}`](methods/{method.name}.md) | {method.summary} |" for method in found)]
    )


@functools.cache
def pages() -> dict[Path, str]:
    """Return every page that holds a table, as it should be."""
    found: dict[Path, str] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        path = DOCS / "commands" / f"{name}.md"
        found[path] = rewritten(path.read_text(), options(command), tool="tools/tables.py")
    every = [method for method in methods() if (DOCS / "methods" / f"{method.name}.md").exists()]
    for method in every:
        path = DOCS / "methods" / f"{method.name}.md"
        found[path] = rewritten(path.read_text(), settings(method), tool="tools/tables.py")
    path = DOCS / "index.md"
    found[path] = rewritten(path.read_text(), overview(every), tool="tools/tables.py")
    return found


def main() -> None:
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
