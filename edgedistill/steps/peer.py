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
from edgedistill.run import artifacts, hooks
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.directory import Run
from edgedistill.run.files import digest
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
    share = judge(context.shipping())
    save_arrays(artifacts.PEER.path_in(context.run), logits=logits(part), **asdict(share))


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


def without_half(context: Context, half: int) -> Context:
    """The context of a training on labels alone without one half of them; its run is a part of the baseline's."""
    from edgedistill.distill import peer

    alone, splits = context.labels_alone(), context.splits.without_half(half)
    recipe = alone.recipe.model_copy(update={"distill": peer.on_half_the_labels(alone.recipe.distill)})
    division = digest([splits.test_set.store.pixels_hash, splits.labeled_labels.tolist()])
    run = replace(alone.run, path=alone.run / artifacts.half_folder(half, division))
    part = context.with_shared_inputs(replace(alone, recipe=recipe, run=run, half=half))
    vars(part)["splits"] = splits
    return part


def judge(context: Context) -> Share:
    """The peer's share, by what it and the teacher say of each half of the labels when trained without it.

    Args:
        context: of the training that the peer joins: with folds val trains, too.
    """
    from edgedistill.distill import peer
    from edgedistill.distill.probes import Labels

    splits, rows = context.splits, context.splits.labeled_rows
    try:
        half_L = splits.halves()
    except InputError:
        say("  the peer has no share: it is judged by halves of the labels, which takes four of each of two classes")
        return peer.UNJUDGED
    labels = Labels(
        rows=rows, labels_L=splits.labeled_labels, units_L=splits.units_N[rows], classes=len(splits.classes)
    )
    share = peer.judge_by_halves(half_L, labels, lambda half: held_out_answers(context, half, rows[half_L == half]))
    say(f"  the peer has a share of {share.weight:.2f}, by {share.judged} labels that it and the teacher had not seen")
    return share


def held_out_answers(context: Context, half: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's probabilities and the peer's logits, [H, C], of a half of the labels that both are trained without.

    Args:
        context: of the training that the peer joins.
        half: which half.
        rows: of its images in train, [H].
    """
    from edgedistill.steps.teacher import fit_teacher

    part = without_half(context, half)
    say(f"  without half {half + 1} of the labels, to judge the peer")
    with hooks.stage(f"half {half + 1}"):
        train(context, part)
    return fit_teacher(part, rows).teacher.probs_NC[rows], logits(part, rows)


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
    version=3,
    sections=("seed", "data", "unlabeled", "distill"),
    after=("weigh", "search", "folds"),
    outputs=(artifacts.PEER.path,),
    work=work,
    applies=applies,
)
