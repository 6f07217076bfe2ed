"""What a user can mend, as exceptions."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: one line that says what is wrong, where, and how to mend it; the CLI exits with code 2."""


class IncompatibleError(UserError):
    """Two artefacts that do not belong together, such as a split of one dataset and a model of another."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """Work stopped on request with everything kept; the line says how to go on; the CLI exits with code 130."""
