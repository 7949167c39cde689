"""verify: torch and every graph on the same test images; agreement, accuracy, gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgedistill.errors import GateError
from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.steps import export
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

if TYPE_CHECKING:
    import numpy as np

    from edgedistill.records import Accuracy


def work(context: Context) -> None:
    """Write the ladder, the mistakes, the images on which the graphs disagree, and the test images' labels, true and
    as every graph predicts them.

    Raises:
        GateError: a gate of the ladder fails; the files are written before.
    """
    import numpy as np

    from edgedistill.distill import evaluate
    from edgedistill.export import onnx, verify
    from edgedistill.labels.protocol import unit_accuracy
    from edgedistill.students.build import load_student

    run, record = context.run, context.checkpoint
    images_NHWC, labels_N = context.compared_images(record.spec.input_px)
    student = load_student(record.spec, context.shipped.run / record.path)
    torch_NC = evaluate.logits(student, record.spec, images_NHWC)
    out_of_fold = None if context.splits.n_test else artifacts.OUT_OF_FOLD.read(context.shipped.run)

    def score(logits_NC: np.ndarray) -> Accuracy:
        if out_of_fold:
            return verify.estimated(logits_NC, torch_NC, out_of_fold)
        return unit_accuracy(labels_N, logits_NC.argmax(axis=1), context.splits.test_set.units_N)

    ladder, logits = verify.ladder(
        torch_NC,
        context.models,
        run=run.path,
        images_NHWC=images_NHWC,
        score=score,
        settings=context.recipe.export,
    )
    artifacts.LADDER.write(run, ladder)
    default_NC = logits[context.default_graph]
    mistakes = verify.mistakes(images_NHWC, labels_N, default_NC)
    if out_of_fold:
        mistakes = fold_mistakes(context)
    save_arrays(artifacts.MISTAKES.path_in(run), **mistakes)
    rows = np.array(ladder.worst, dtype=np.int64)
    names = verify.furthest(
        torch_NC[rows], {name: logits_NC[rows] for name, logits_NC in logits.items() if "int8" in name}
    )
    int8 = np.array([logits[name][row].argmax() for name, row in zip(names, rows, strict=True)], dtype=np.int64)
    save_arrays(
        artifacts.DISAGREEMENTS.path_in(run),
        images=images_NHWC[rows],
        labels=labels_N[rows],
        torch=torch_NC[rows].argmax(axis=1),
        int8=int8,
        artefact=np.array(names, dtype=str),
    )
    predictions = {name: logits_NC.argmax(axis=1) for name, logits_NC in logits.items()}
    save_arrays(artifacts.PREDICTIONS.path_in(run), labels=np.asarray(labels_N, dtype=np.int64), **predictions)
    failed = [gate for gate in ladder.gates if not gate.passed]
    if failed:
        gates = ", ".join(f"{gate.name} is {gate.value:.6g} (wanted {gate.bound})" for gate in failed)
        agreement, error = (gate.value for gate in ladder.gates)
        raise GateError(f"verify: {gates}", onnx.loosened(agreement, error, context.recipe.export))


def fold_mistakes(context: Context) -> dict[str, Any]:
    """The mistakes of the folds' students, on the images that each was trained without."""
    from edgedistill.export import verify

    answers = artifacts.FOLD_ANSWERS.read(context.shipped.run)
    images_NHWC = context.splits.train.resized(context.checkpoint.spec.input_px)[answers["rows"]]
    return dict(verify.mistakes(images_NHWC, answers["labels"], answers[context.fold_graph(answers)]))


STEP = Step(
    name="verify",
    version=4,
    after=("distill", "export", "quantize", "keep"),
    inputs=export.inputs,
    outputs=("verify/*",),
    work=work,
)
