"""The errors shown to users, with their exit codes.

EdgeDistillError        1  something failed
+-- InputError          2  the input is wrong: a recipe, a path, an image, a weights file
+-- GateError           3  everything ran, and a check of the result failed
"""

from __future__ import annotations


class EdgeDistillError(Exception):
    """What went wrong and, where known, the fix; printed as one line, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message if not fix else f"{message}; {fix}")
        self.message = message
        self.fix = fix


class InputError(EdgeDistillError):
    """The input is wrong: a recipe, a path, an image, a weights file."""

    exit_code = 2


class UnfitError(EdgeDistillError):
    """One candidate cannot become a student; the search goes on with the other candidates."""


class GateError(EdgeDistillError):
    """The work is done and on disk, but a gate failed."""

    exit_code = 3
