"""What a fuzzer consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from edgedistill.errors import EdgeDistillError

# in every command, program and module name that an input would like to have run
CANARY = "edgedistill_canary"


def nothing(folder: Path) -> None:
    """No preparation."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input.

    Attributes:
        name: what it is called on the command line.
        file: where an input is written, below the sandbox's folder.
        valid: a valid input, the first of those that `make` starts from.
        make: makes an input; the same for the same `Random`.
        call: the call under test, on the written file.
        inputs: how many are made in the slow tier.
        prepare: writes what else is in the folder, before the first call.
        errors: what `call` may raise; its text is printed to a person.
        lines: whether an error may have several lines.
        cases: crafted inputs, numbered from -1 downwards, for what a random change seldom makes.
    """

    name: str
    file: str
    valid: Callable[[], bytes]
    make: Callable[[Random], bytes]
    call: Callable[[Path], object]
    inputs: int
    prepare: Callable[[Path], None] = nothing
    errors: tuple[type[BaseException], ...] = (EdgeDistillError,)
    lines: bool = False
    cases: Callable[[], list[bytes]] = list

    def input(self, seed: int, index: int) -> bytes:
        """Input number `index` of a seed; a crafted one below 0."""
        return self.make(Random(f"{self.name}/{seed}/{index}")) if index >= 0 else self.cases()[-index - 1]

    def indices(self, count: int | None = None) -> range:
        """All crafted inputs, and `count` made ones; by default as many as in the slow tier."""
        return range(-len(self.cases()), self.inputs if count is None else count)


class RefusedError(Exception):
    """A program of its own (label.py) said on stderr what was wrong with an input, and ended with 2."""
