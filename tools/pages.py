"""The part of a documentation page that a tool writes."""

from __future__ import annotations

BEGIN, END = "<!-- written by {tool} -->", "<!-- end of what is written -->"


def rewritten(page: str, text: str, *, tool: str) -> str:
    """Return ``page`` with ``text`` between the markers of ``tool``; what stands around them stays."""
    begin = BEGIN.format(tool=tool)
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise SystemExit(f"the page lacks the lines {begin!r} and {END!r}")
    return f"{before}{begin}\n\n{text}\n\n{END}{after}"
