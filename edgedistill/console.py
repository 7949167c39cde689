"""Progress output: lines and bars on stderr, and scalars in TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from edgedistill.run.interrupts import shielded

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def say(line: str) -> None:
    """Print one line of progress on stderr."""
    with shielded():  # else a signal could come before the line's end, and its own line would not begin one
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A predicted duration for the end of a line: `: about 12 min in all`."""
    return f": about {seconds / 60:.0f} min in all" if seconds >= 90 else f": about {seconds:.0f} s in all"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many cells as lines, two spaces between the columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@contextmanager
def bar(description: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Show a progress bar after half a second; yield the function that advances it by n; None for no known end."""
    with tqdm(total=total, desc=description, leave=False, disable=None, dynamic_ncols=True, delay=0.5) as progress:
        yield progress.update


def slices(description: str, total: int, size: int) -> Iterator[slice]:
    """Split range(total) into slices of at most `size`, with a progress bar."""
    with bar(description, total) as advance:
        for start in range(0, total, size):
            yield slice(start, start + size)
            advance(min(size, total - start))


@contextmanager
def log_training(folder: Path, steps: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Write loss terms to TensorBoard and show a progress bar; yield the function to call after each step.

    After a resume, events of the steps that run again are purged from the log.
    """
    from torch.utils.tensorboard import SummaryWriter

    with bar("distill", steps) as advance, ExitStack() as stack:
        writers: list[SummaryWriter] = []

        def on_step(step: int, scalars: Mapping[str, float]) -> None:
            if not writers:  # only the first call tells at which step a resumed run continues
                advance(step - 1)
                writers.append(SummaryWriter(str(folder), purge_step=step))
                stack.callback(_close, writers[0])
            # an exception inside its queue would leave a lock taken or its thread asleep: close() would not return
            with shielded():
                for name, value in scalars.items():
                    writers[0].add_scalar(name, value, step)
            advance(1)

        yield on_step


def _close(writer: SummaryWriter) -> None:
    with shielded():
        writer.close()
