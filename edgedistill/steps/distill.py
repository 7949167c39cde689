"""distill: train the chosen student for all steps, then measure it on test, once."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from edgedistill.console import log_training, say
from edgedistill.records import Accuracy, Checkpoint, StudentSpec, TeacherScore
from edgedistill.run import artifacts
from edgedistill.run.files import atomic, json_lines, sha256_file, write_json
from edgedistill.steps import lengths, workers
from edgedistill.steps.candidate import chance
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

if TYPE_CHECKING:
    from torch import nn

    from edgedistill.distill.loop import TrainedStudent


def inputs(context: Context) -> dict[str, str]:
    """The versions of what not every training has: a teacher with tuned sources, a head that a ridge begins."""
    from edgedistill.distill import head_start, teachers

    settings, versions = context.recipe.distill, {}
    if settings.teacher.options.get("tuned"):
        versions["tuned"] = str(teachers.TUNED_VERSION)
    if settings.head_start == "ridge":
        versions["head start"] = str(head_start.VERSION)
    return versions


def work(context: Context) -> None:
    """Train the student chosen by the search, and measure it on test."""
    from safetensors.torch import save

    from edgedistill.distill import headless, loop, schedule
    from edgedistill.students.build import require_finite_weights

    if note := headless.method_note(context.recipe.distill.method.name, context.weights.features_only):
        say(f"  {note}")
    context = context.shipping().taught_by_peer()
    recipe = context.recipe
    spec, weights = artifacts.STUDENT.read(context.run), artifacts.STUDENT_WEIGHTS.path_in(context.run)
    steps = lengths.training_steps(context, spec)
    if recipe.distill.steps == "auto":
        say(f"  {steps} steps for {context.splits.train.n} images")
    model, task = workers.prepare_training(context, spec, steps=steps, seed=recipe.seed, folder=weights.parent)
    with log_training(context.run / artifacts.TENSORBOARD, steps) as on_step:
        fitted = loop.fit(model, task, folder=weights.parent, on_step=on_step)
    require_finite_weights(fitted.model)  # the last step may have diverged, too
    fitted = at_prior(context, fitted, spec)
    with atomic(weights) as temporary:
        state = fitted.model.state_dict()
        temporary.write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in state.items()}))
    test = test_accuracy(context, fitted.model, spec)
    lines = json_lines(artifacts.METRICS.path_in(context.run).read_text(encoding="utf-8"))
    falling = schedule.still_falling([line["loss"] for line, _ in lines])
    record = Checkpoint(
        path=artifacts.STUDENT_WEIGHTS.path,
        sha256=sha256_file(weights),
        spec=spec,
        classes=context.splits.classes,
        val=fitted.val,
        test=test,
        method=recipe.distill.method.name,
        steps=steps,
        train_seconds=round(fitted.seconds, 3),
        teacher=teacher_score(context, fitted.val),
        falling=falling,
    )
    summary = {"top1": test.top1, "n_test": test.n, "ci95": test.top1_ci95}
    write_json(artifacts.RESULT.path_in(context.run), {**asdict(record), **summary})


def at_prior(context: Context, fitted: TrainedStudent, spec: StudentSpec) -> TrainedStudent:
    """The student after it was told the prior, and its accuracy on val, where that has changed it."""
    from edgedistill.distill import evaluate
    from edgedistill.distill.prior import tell_prior

    splits = context.splits
    images_NHWC, rows = splits.train.resized(spec.input_px), splits.unlabeled_rows
    told = tell_prior(fitted.model, spec, context.prior, images_NHWC=images_NHWC, rows=rows)
    if not told or fitted.val is None:
        return fitted
    val_logits_NC = evaluate.logits(fitted.model, spec, images_NHWC[splits.val_rows])
    return replace(fitted, val=evaluate.score(val_logits_NC, splits.val_labels))


def test_accuracy(context: Context, model: nn.Module, spec: StudentSpec) -> Accuracy:
    """The accuracy on the test images; with folds, for the student that ships, that out of fold.

    It is unknown for a peer on all labels where workers share the folds: each has the files of its own folds alone.
    """
    from edgedistill.distill import evaluate
    from edgedistill.labels.protocol import unit_accuracy

    images_NHWC, labels_N = context.test_images(spec.input_px)
    if not len(labels_N):
        out_of_fold = artifacts.OUT_OF_FOLD.find(context.run)
        return out_of_fold.fp32 if out_of_fold else chance(len(context.splits.classes))
    predicted_N = evaluate.logits(model, spec, images_NHWC).argmax(axis=1)
    return unit_accuracy(labels_N, predicted_N, context.splits.test_set.units_N)


def teacher_score(context: Context, student: Accuracy | None) -> TeacherScore | None:
    """The teacher's accuracy on val if the method has a teacher; a teacher weaker than the student is reported."""
    from edgedistill.distill import evaluate
    from edgedistill.distill.methods import METHODS

    distill, splits = context.recipe.distill, context.splits
    if "teacher" not in METHODS[distill.method.name].needs:
        return None
    if blind := [name for name, share in context.teacher.weights.items() if not share]:
        say(f"  teacher: no share for {', '.join(blind)}, not told from chance on the labels")
    kind, share = distill.teacher.name, context.fitted.peer_share
    kind = kind if share is None else f"{kind} with a peer whose share is {share.weight:.2f}"
    if student is None:
        return TeacherScore(kind=kind, val=None, weights=context.teacher.weights)
    val = evaluate.score(context.teacher.probs_NC[splits.val_rows], splits.val_labels)
    say(f"  teacher: {val.balanced:.1%} balanced accuracy on val, the student {student.balanced:.1%}")
    if val.balanced < student.balanced_ci95[0]:
        fix = (
            "add better sources, or choose transfer"
            if context.peer_teaches
            else "try distill.peer: true, or better sources"
        )
        say(f"  the student is better than its teacher: {fix}")
    return TeacherScore(kind=kind, val=val, weights=context.teacher.weights)


STEP = Step(
    name="distill",
    version=2,
    sections=("seed", "data", "unlabeled", "distill"),
    after=("weigh", "search", "folds", "peer"),
    inputs=inputs,
    outputs=(artifacts.STUDENT_WEIGHTS.path, artifacts.RESULT.path, artifacts.METRICS.path),
    scratch=(artifacts.LAST_CHECKPOINT.path, f"{artifacts.TENSORBOARD}/*"),
    work=work,
)
