"""The errors meant for people, with their exit codes.

EdgeDistillError        1  something failed
+-- InputError          2  the input is wrong: a recipe, a path, an image, a weights file
+-- GateError           3  everything ran, and a check on the result says no
"""

from __future__ import annotations


class EdgeDistillError(Exception):
    """What went wrong and, where one is known, the fix; printed as one line, never as a traceback."""

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message if not fix else f"{message}; {fix}")
        self.message = message
        self.fix = fix


class InputError(EdgeDistillError):
    """The input is wrong; nothing was written."""

    exit_code = 2


class UnfitError(EdgeDistillError):
    """A candidate that cannot become a student, for a reason of its own; the others still can."""


class GateError(EdgeDistillError):
    """The work is done and on disk, but a gate refuses the result."""

    exit_code = 3
