"""peer: train the same student on labels alone, for `distill.peer`: its answers are averaged with the teacher's.

It is the student of the step baseline, in the same folder, and is trained once; and without each half of the labels,
to judge it, on half as many steps. H images of a half, C classes.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from edgedistill.console import say
from edgedistill.errors import InputError
from edgedistill.run import artifacts, hooks
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.files import digest
from edgedistill.steps import distill, parts
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

if TYPE_CHECKING:
    import numpy as np

    from edgedistill.distill.peer import Share


def applies(context: Context) -> bool:
    """Whether a peer teaches."""
    return context.has_peer


def work(context: Context) -> None:
    """Train the peer, keep its logits of every train image, and judge it."""
    part = context.labels_alone()
    parts.train(context, part)
    share = judge(context.shipping())
    save_arrays(artifacts.PEER.path_in(context.run), logits=parts.logits(part), **asdict(share))


def without_half(context: Context, half: int) -> Context:
    """The context of a training on labels alone without one half of them; its run is a part of the baseline's."""
    from edgedistill.distill import peer

    alone, splits = context.labels_alone(), context.splits.without_half(half)
    recipe = alone.recipe.model_copy(update={"distill": peer.on_half_the_labels(alone.recipe.distill)})
    division = digest([splits.test_set.store.pixels_hash, splits.labeled_labels.tolist()])
    run = replace(alone.run, path=alone.run / artifacts.half_folder(half, division))
    for other in run.path.parent.glob(f"{half}-*"):
        if other != run.path:  # of labels that are no more
            shutil.rmtree(other, ignore_errors=True)
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
    import numpy as np

    from edgedistill.distill.probes import softmax
    from edgedistill.steps.teacher import fit_teacher

    part, splits = without_half(context, half), context.splits
    say(f"  without half {half + 1} of the labels, to judge the peer")
    with hooks.stage(f"half {half + 1}"):
        parts.train(context, part)
    teacher_HC, logits_HC = fit_teacher(part, rows).teacher.probs_NC[rows], parts.logits(part, rows)
    if context.prior is None:
        return teacher_HC, logits_HC
    # both answer at the prior; the labels that judge them have shares of their own
    shift_C = context.prior.label_shift(np.bincount(splits.labeled_labels, minlength=len(splits.classes)))
    return softmax(np.log(np.maximum(teacher_HC, 1e-12)) + shift_C), logits_HC + shift_C


STEP = Step(
    name="peer",
    version=3,
    sections=("seed", "data", "unlabeled", "distill"),
    after=("weigh", "search", "folds"),
    inputs=distill.inputs,
    outputs=(artifacts.PEER.path,),
    work=work,
    applies=applies,
)
