"""distill: train the chosen student for all steps, then measure it on test, once."""

from __future__ import annotations

from dataclasses import asdict

from edgedistill.console import log_training, say
from edgedistill.records import Accuracy, Checkpoint, TeacherScore
from edgedistill.run import artifacts
from edgedistill.run.files import atomic, sha256_file, write_json
from edgedistill.steps import workers
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step


def work(context: Context) -> None:
    """Train the student chosen by the search, and measure it on test."""
    from safetensors.torch import save

    from edgedistill.distill import evaluate, loop

    recipe, steps = context.recipe, context.recipe.distill.steps
    spec, weights = artifacts.STUDENT.read(context.run), artifacts.STUDENT_WEIGHTS.path_in(context.run)
    model, task = workers.prepare_training(context, spec, steps=steps, seed=recipe.seed, folder=weights.parent)
    with log_training(context.run / artifacts.TENSORBOARD, steps) as on_step:
        fitted = loop.fit(model, task, folder=weights.parent, on_step=on_step)
    with atomic(weights) as temporary:
        state = fitted.model.state_dict()
        temporary.write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in state.items()}))
    images_NHWC, labels_N = context.test_images(spec.input_px)
    test = evaluate.score(evaluate.logits(fitted.model, spec, images_NHWC), labels_N)
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
    )
    summary = {"top1": test.top1, "n_test": test.n, "ci95": test.top1_ci95}
    write_json(artifacts.RESULT.path_in(context.run), {**asdict(record), **summary})


def teacher_score(context: Context, student: Accuracy) -> TeacherScore | None:
    """The teacher's accuracy on val if the method has a teacher; a teacher weaker than the student is reported."""
    from edgedistill.distill import evaluate
    from edgedistill.distill.methods import METHODS

    distill, splits = context.recipe.distill, context.splits
    if "teacher" not in METHODS[distill.method.name].needs:
        return None
    val = evaluate.score(context.teacher.probs_NC[splits.val_rows], splits.val_labels)
    say(f"  teacher: {val.balanced:.1%} balanced accuracy on val, the student {student.balanced:.1%}")
    if val.balanced < student.balanced_ci95[0]:
        say("  the student is better than its teacher: add better sources, or choose transfer")
    return TeacherScore(kind=distill.teacher.name, val=val, weights=context.teacher.weights)


STEP = Step(
    name="distill",
    version=1,
    sections=("seed", "data", "unlabeled", "distill"),
    after=("weigh", "search"),
    outputs=(artifacts.STUDENT_WEIGHTS.path, artifacts.RESULT.path, artifacts.METRICS.path),
    scratch=(artifacts.LAST_CHECKPOINT.path, f"{artifacts.TENSORBOARD}/*"),
    work=work,
)
