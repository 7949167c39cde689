"""Progress output: lines and bars on stderr, and scalars in TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm


def say(line: str) -> None:
    """Print one line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar after half a second; yield the function that advances it by n."""
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
                writers.append(stack.enter_context(SummaryWriter(str(folder), purge_step=step)))
            for name, value in scalars.items():
                writers[0].add_scalar(name, value, step)
            advance(1)

        yield on_step
