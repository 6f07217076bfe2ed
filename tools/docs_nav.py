"""A hook of mkdocs: the section Methods of the navigation holds every page of docs/methods, so that no shared file names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Fill the section."""
    pages = sorted(path.stem for path in (Path(config.docs_dir) / "methods").glob("*.md"))
    for section in config.nav:
        if "Methods" in section:
            section["Methods"] += [{name: f"methods/{name}.md"} for name in pages]
    return config
