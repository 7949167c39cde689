"""peer: train the same student on labels alone, for `distill.peer`: its answers are averaged with the teacher's.

It is the student of the step baseline, in the same folder, and is trained once.
"""

from __future__ import annotations

import shutil

from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.directory import Run
from edgedistill.steps import distill
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step, run_steps

SHARED = ("weigh", "search")  # steps whose files the part on labels alone takes over: it trains the same student
TRAINING = (distill.STEP,)


def applies(context: Context) -> bool:
    """Whether a peer teaches."""
    return context.has_peer


def work(context: Context) -> None:
    """Train the peer, and keep its logits of every train image."""
    from edgedistill.distill import evaluate
    from edgedistill.students.build import load_student

    part = context.labels_alone()
    take_over(context.run, part.run)
    with part.run.lock():
        run_steps(part, TRAINING)
    record = artifacts.RESULT.read(part.run)
    student = load_student(record.spec, part.run / record.path)
    logits_NC = evaluate.logits(student, record.spec, context.splits.train.resized(record.spec.input_px))
    save_arrays(artifacts.PEER.path_in(context.run), logits=logits_NC)


def take_over(run: Run, part: Run) -> None:
    """Copy the files of the steps that the part on labels alone shares, and their entries in the manifest."""
    entries = run.manifest()["steps"]
    with part.lock():
        for step in SHARED:
            for name in entries[step]["outputs"]:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run / name, part / name)
            part.enter_step(step, entries[step])


STEP = Step(
    name="peer",
    version=1,
    sections=("seed", "data", "unlabeled", "distill"),
    after=("weigh", "search", "folds"),
    outputs=(artifacts.PEER.path,),
    work=work,
    applies=applies,
)
