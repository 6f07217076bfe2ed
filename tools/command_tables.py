"""Write the option tables of docs/commands/*.md from the program itself: python tools/command_tables.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from pages import rewritten

from sslseg.cli.app import app

DOCS = Path(__file__).parent.parent / "docs" / "commands"


def table(command: Any) -> str:
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


def updated(text: str, command: Any) -> str:
    """Return a page with its table written anew."""
    return rewritten(text, table(command), tool="tools/command_tables.py")


def main() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        page = DOCS / f"{name}.md"
        page.write_text(updated(page.read_text(), command))


if __name__ == "__main__":
    main()
