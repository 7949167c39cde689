"""peer: train the same student on labels alone, for `distill.peer`: its answers are averaged with the teacher's.

It is the student of the step baseline, in the same folder, and is trained once; and without each half of the labels,
to judge it, on half as many steps. H images of a half, N images of train, C classes.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from edgedistill.console import say
from edgedistill.errors import InputError
from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.directory import Run
from edgedistill.steps import distill
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step, run_steps

if TYPE_CHECKING:
    import numpy as np

    from edgedistill.distill.peer import Share

SHARED = ("weigh", "search")  # steps whose files the part on labels alone takes over: it trains the same student
TRAINING = (distill.STEP,)


def applies(context: Context) -> bool:
    """Whether a peer teaches."""
    return context.has_peer


def work(context: Context) -> None:
    """Train the peer, keep its logits of every train image, and judge it."""
    part = context.labels_alone()
    train(context, part)
    px = artifacts.RESULT.read(part.run).spec.input_px
    logits_NC = logits(part, context.splits.train.resized(px))
    share = judge(context.shipping())
    save_arrays(artifacts.PEER.path_in(context.run), logits=logits_NC, **asdict(share))


def train(context: Context, part: Context) -> None:
    """Train the student that a context has chosen in one of its parts."""
    take_over(context.run, part.run)
    with part.run.lock():
        run_steps(part, TRAINING)


def logits(part: Context, images_NHWC: np.ndarray) -> np.ndarray:
    """The logits of a part's student, float [N, C], of images at its input size."""
    from edgedistill.distill import evaluate
    from edgedistill.students.build import load_student

    record = artifacts.RESULT.read(part.run)
    return evaluate.logits(load_student(record.spec, part.run / record.path), record.spec, images_NHWC)


def without_half(context: Context, half: int) -> Context:
    """The context of a training on labels alone without one half of them; its run is a part of the baseline's."""
    from edgedistill.distill import peer

    alone = context.labels_alone()
    settings = alone.recipe.distill
    assert settings.steps != "auto", "the baseline has as many as the student"
    settings = settings.model_copy(update={"steps": peer.on_half_the_labels(settings.steps)})
    recipe = alone.recipe.model_copy(update={"distill": settings})
    run = replace(alone.run, path=alone.run / artifacts.half_folder(half))
    part = context.with_shared_inputs(replace(alone, recipe=recipe, run=run, half=half))
    vars(part)["splits"] = context.splits.without_half(half)
    return part


def judge(context: Context) -> Share:
    """The peer's share, by what it and the teacher say of each half of the labels when trained without it.

    Args:
        context: of the training that the peer joins: with folds val trains, too.
    """
    import numpy as np

    from edgedistill.distill import peer
    from edgedistill.steps.teacher import fit_teacher

    try:
        halves = context.splits.halves()
    except InputError:  # too few labels to leave one out
        return peer.UNJUDGED
    teacher, students, labels = [], [], []
    for half in range(halves.count):
        part = without_half(context, half)
        say(f"  without half {half + 1} of the labels, to judge the peer")
        train(context, part)
        px = artifacts.RESULT.read(part.run).spec.input_px
        images_HHWC, labels_H = part.test_images(px)
        rows = context.splits.labeled_rows[halves.folds_N == half]
        teacher.append(fit_teacher(part).teacher.probs_NC[rows])
        students.append(logits(part, images_HHWC))
        labels.append(labels_H)
    share = peer.judge(np.concatenate(teacher), np.concatenate(students), np.concatenate(labels))
    say(f"  the peer has a share of {share.share:.2f}, by {share.judged} labels that it and the teacher had not seen")
    return share


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
    version=2,
    sections=("seed", "data", "unlabeled", "distill"),
    after=("weigh", "search", "folds"),
    outputs=(artifacts.PEER.path,),
    work=work,
    applies=applies,
)
