"""Exceptions for what a user can fix."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: one line that says what is wrong, where, and how to fix it; the CLI exits with code 2."""


class IncompatibleError(UserError):
    """Two artifacts that do not fit each other, such as a split of one dataset and a model of another."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """Stopped by the user, with all work saved; the line says how to continue; the CLI exits with code 130."""
