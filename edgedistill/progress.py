"""What a person sees while the work is on, all of it on stderr: lines, and bars where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar, for what takes longer than a moment; yields the function that advances it by n."""
    with tqdm(total=total, desc=what, leave=False, disable=None, dynamic_ncols=True, delay=0.5) as shown:
        yield shown.update


def slices(what: str, total: int, size: int) -> Iterator[slice]:
    """`total` items in slices of at most `size`, with a bar that follows."""
    with bar(what, total) as shown:
        for at in range(0, total, size):
            yield slice(at, at + size)
            shown(min(size, total - at))
