"""How long a training is: its steps, and the images of a step for labels alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgedistill.recipe.schema import Distill
from edgedistill.records import StudentSpec
from edgedistill.run import artifacts

if TYPE_CHECKING:
    from edgedistill.steps.context import Context


def training_steps(context: Context, spec: StudentSpec) -> int:
    """The number of steps of a training, however many threads a process has that goes on with the run."""
    from edgedistill.distill import schedule

    distill = context.recipe.distill
    if distill.steps != "auto":
        return distill.steps
    images, batch = context.splits.train.n, distill.batch_labeled
    if context.method.uses_more_than_labels:
        images += sum(len(labeled.rows) for labeled in context.shards)
        batch += _unlabeled_a_step(context)
    return schedule.automatic_steps(distill, images, batch, macs_m=spec.cost.macs_m, workers=speed(context))


def speed(context: Context) -> float:
    """The speed of the machine that the run was begun on, in CPU cores; of this one in a run without a record of it."""
    from edgedistill.distill import schedule

    record = artifacts.SPEED.find(artifacts.whole(context.run))
    return float(record["cores"]) if record else schedule.speed()


def on_labels_alone(context: Context) -> Distill:
    """The settings of the baseline: as many steps, and as many images a step, all of them labeled."""
    from edgedistill.distill import peer

    settings = peer.on_labels_alone(context.recipe.distill, _unlabeled_a_step(context))
    student = artifacts.STUDENT.read(artifacts.whole(context.run))  # also in a fold: the folds have one length
    return settings.model_copy(update={"steps": training_steps(context, student)})


def _unlabeled_a_step(context: Context) -> int:
    has_unlabeled = len(context.splits.unlabeled_rows) > 0 or context.recipe.unlabeled is not None
    return context.recipe.distill.batch_unlabeled if has_unlabeled else 0
