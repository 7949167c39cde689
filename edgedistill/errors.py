"""The errors shown to users, with their exit codes.

EdgeDistillError        1  something failed
+-- InputError          2  the input is wrong: a recipe, a path, an image, a weights file
+-- GateError           3  everything ran, and a check of the result failed
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_LINE = 1500  # characters of a line of a message; names and values of a file may be of any length


def printable(text: str) -> str:
    """The text with what would move a terminal's cursor escaped: control characters, line ends, odd spaces."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def first_names(names: Sequence[str], most: int) -> str:
    """The first names of a message, at most `most` of them, and how many there are besides."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class EdgeDistillError(Exception):
    """What went wrong and, where known, the fix; printed as one line, without a traceback.

    Several problems are a line each. Control characters of names and values are escaped, so that a file's contents add
    no lines and move no cursor.
    """

    exit_code = 1

    def __init__(self, message: str | Sequence[str], fix: str = "") -> None:
        lines = [message] if isinstance(message, str) else list(message)
        self.message = "\n".join(lines)
        self.fix = fix
        lines[-1:] = [f"{line}; {fix}" if fix else line for line in lines[-1:]]
        super().__init__("\n".join(_cut(printable(line)) for line in lines))


def _cut(line: str) -> str:
    """A line that is too long without its middle: it begins with the place and ends with the fix."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 500]}... {line[-400:]}"


class InputError(EdgeDistillError):
    """The input is wrong: a recipe, a path, an image, a weights file."""

    exit_code = 2


class UnfitError(EdgeDistillError):
    """One candidate cannot become a student; the search goes on with the other candidates."""


class GateError(EdgeDistillError):
    """The work is done and on disk, but a gate failed."""

    exit_code = 3
