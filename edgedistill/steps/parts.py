"""A part of a run that trains the student that the run has chosen, in a folder of its own.

Such are the student on labels alone, its folds, and those that judge a peer. N images of train, C classes.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.steps import distill
from edgedistill.steps.context import Context
from edgedistill.steps.step import run_steps

if TYPE_CHECKING:
    import numpy as np

SHARED = ("weigh", "search")  # steps whose files a part takes over: it trains the same student
TRAINING = (distill.STEP,)


def take_over(run: Run, part: Run) -> None:
    """Copy the files of the steps that a part shares, and their entries in the manifest."""
    entries = run.manifest()["steps"]
    with part.lock():
        for step in SHARED:
            for name in entries[step]["outputs"]:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run / name, part / name)
            part.enter_step(step, entries[step])


def train(context: Context, part: Context) -> None:
    """Train the student that a context has chosen in one of its parts."""
    take_over(context.run, part.run)
    with part.run.lock():
        run_steps(part, TRAINING)


def logits(part: Context, rows: np.ndarray | None = None) -> np.ndarray:
    """The logits of a part's student, float [N, C], of every train image or of those at `rows`."""
    from edgedistill.distill import evaluate
    from edgedistill.students.build import load_student

    record = artifacts.RESULT.read(part.run)
    images_NHWC = part.splits.train.resized(record.spec.input_px)
    images_NHWC = images_NHWC if rows is None else images_NHWC[rows]
    return evaluate.logits(load_student(record.spec, part.run / record.path), record.spec, images_NHWC)
