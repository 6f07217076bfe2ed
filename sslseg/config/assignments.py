"""``--set a.b=value``: dotted keys of a nested config."""

from __future__ import annotations

import ast
from typing import Any

from sslseg.errors import UserError


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``a.b=value`` of ``--set``; the value is a Python literal where it is one, else a string."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text!r} is not of the form a.b=value")
    try:
        value = ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(raw.lower(), raw)
    return key.strip(), value


def apply_assignments(config: Any, assignments: dict[str, Any]) -> None:
    """Set dotted keys of ``config`` in place; a parent that does not exist is an error, so that typos are seen."""
    for dotted, value in assignments.items():
        *parents, last = dotted.split(".")
        node = config
        for depth, key in enumerate(parents):
            if isinstance(node, list):
                child = node[int(key)] if key.isdigit() and int(key) < len(node) else None
                known = f"0..{len(node) - 1}"
            else:
                child, known = node.get(key), ", ".join(node.keys())
            if not isinstance(child, (dict, list)):
                where = ".".join(parents[: depth + 1])
                raise UserError(f"--set {dotted}: there is no {where!r} in the config; it has: {known}")
            node = child
        if isinstance(node, list):
            if not last.isdigit() or int(last) >= len(node):
                raise UserError(f"--set {dotted}: {last!r} is not an index of this list of {len(node)}")
            node[int(last)] = value
        else:
            node[last] = value


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested config as dotted keys; lists and tuples count as the same."""
    if isinstance(config, dict):
        items = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, (list, tuple)):
        items = [(str(index), value) for index, value in enumerate(config)]
    else:
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flattened(value, f"{prefix}.{key}" if prefix else key)
    return flat
