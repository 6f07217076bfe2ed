"""Configs of version 0.1 under today's names, so that a user's own files and old checkpoints still load."""

from __future__ import annotations

from typing import Any

from sslseg.config.files import method_class
from sslseg.progress import note

EPOCHS = "_epochs"
CAT_MAX_RATIO = 0.75  # was no setting in version 0.1
ASSIGNED = {"schedule.iters": "schedule.iterations"}


def upgrade_config(config: Any, *, quiet: bool = False) -> Any:
    """Rename in place what has another name today, say so unless ``quiet``, and return ``config``."""
    changed = []
    schedule, method = config.get("schedule"), config.get("method")
    if "data" in config:
        config.data.setdefault("cat_max_ratio", CAT_MAX_RATIO)
    if schedule and "iters" in schedule:
        schedule["iterations"] = schedule.pop("iters")  # wins over that of a base file
        changed.append("schedule.iters -> schedule.iterations")
    if method:
        for name in [name for name in method if name.endswith(EPOCHS)]:
            number, new = method.pop(name), name.removesuffix(EPOCHS)
            if number is not None:
                method[new] = f"{number:g} epochs"
            changed.append(f'method.{name} -> method.{new} = "N epochs"')
        changed += rename_settings(method, method_class(config).old_settings, where="method")
    if changed and not quiet:
        note(f"{config.filename or 'the config'} is of version 0.1: {'; '.join(changed)}")
    return config


def upgrade_assignments(assignments: dict[str, Any]) -> dict[str, Any]:
    """Return assignments of ``--set`` under today's names, and say what has another name."""
    for old in ASSIGNED.keys() & assignments.keys():
        note(f"--set {old} is now {ASSIGNED[old]}")
    return {ASSIGNED.get(key, key): value for key, value in assignments.items()}


def rename_settings(settings: Any, old: dict[str, Any], *, where: str) -> list[str]:
    """Rename settings in place and return what was done; a dict in ``old`` holds names within a setting, None removes one."""
    changed = []
    for name, new in old.items():
        if name not in settings:
            continue
        if isinstance(new, dict):
            if isinstance(settings[name], dict):
                changed += rename_settings(settings[name], new, where=f"{where}.{name}")
            continue
        value = settings.pop(name)
        if new is not None:
            settings[new] = value
        changed.append(f"{where}.{name} " + (f"-> {where}.{new}" if new else "is gone"))
    return changed
