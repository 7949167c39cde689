"""Progress under signals: whole lines, and a TensorBoard log whose queue no exception breaks, with every scalar."""

from __future__ import annotations

import io
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edgedistill.console import log_training, say
from edgedistill.run import interrupts


class InterruptedText(io.StringIO):
    """A text file whose first piece comes with a signal."""

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.tell() == count:
            signal.raise_signal(signal.SIGTERM)
        return count


def test_signal_waits_for_the_end_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = InterruptedText()
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(SystemExit), interrupts.handled("stopped"):
        say("half a line")
    assert stderr.getvalue() == "half a line\nstopped\n"


def scalars(folder: Path) -> dict[str, list[int]]:
    """The steps logged of each scalar."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [event.step for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_training_log_has_every_step_after_a_resume(tmp_path: Path) -> None:
    for steps in (range(1, 6), range(4, 8)):
        with log_training(tmp_path, 8) as on_step:
            for step in steps:
                on_step(step, {"loss": 1.0 / step, "terms/labels": 0.5})
        time.sleep(1)  # logs are read in the order of their names: the second, then a counter in which 10 precedes 9
    assert scalars(tmp_path) == {"loss": [*range(1, 8)], "terms/labels": [*range(1, 8)]}


# the writer's queue gets three events of its own, two scalars of each of three steps, and the mark of its end
@pytest.mark.parametrize(("n_puts", "n_steps"), [(4, 1), (10, 3)])
def test_signal_inside_the_writer_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_puts: int, n_steps: int
) -> None:
    puts, put, n_threads = [], queue.Queue.put, threading.active_count()

    def interrupted_put(self: Any, *arguments: Any, **options: Any) -> None:
        puts.append(arguments)
        if len(puts) == n_puts:
            signal.raise_signal(signal.SIGINT)
        put(self, *arguments, **options)

    monkeypatch.setattr(queue.Queue, "put", interrupted_put)
    with pytest.raises(SystemExit), interrupts.handled(""), log_training(tmp_path, 3) as on_step:
        for step in (1, 2, 3):
            on_step(step, {"loss": 1.0, "terms/labels": 0.5})
    monkeypatch.undo()
    assert scalars(tmp_path) == {name: [*range(1, n_steps + 1)] for name in ("loss", "terms/labels")}
    assert threading.active_count() == n_threads  # the writer's has ended
