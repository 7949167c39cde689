"""What a person sees while the work is on: lines and bars on stderr, and scalars in TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

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


@contextmanager
def watch(folder: Path, steps: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Every loss term to TensorBoard, and a progress bar; steps done before are not written twice."""
    from torch.utils.tensorboard import SummaryWriter

    with bar("distill", steps) as shown, ExitStack() as stack:
        writers: list[SummaryWriter] = []

        def on_step(step: int, scalars: Mapping[str, float]) -> None:
            if not writers:  # only the first step done tells from where a resumed run goes on
                shown(step - 1)
                writers.append(stack.enter_context(SummaryWriter(str(folder), purge_step=step)))
            for name, value in scalars.items():
                writers[0].add_scalar(name, value, step)
            shown(1)

        yield on_step
