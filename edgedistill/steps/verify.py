"""verify: torch and every graph on the same test images; agreement, accuracy, gates."""

from __future__ import annotations

from edgedistill.errors import GateError
from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.steps import export
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step


def work(context: Context) -> None:
    """Write the ladder, the mistakes, the images on which the graphs disagree, and every graph's predictions.

    Raises:
        GateError: a gate of the ladder fails; the files are written before.
    """
    import numpy as np

    from edgedistill.distill import evaluate
    from edgedistill.export import verify
    from edgedistill.students.build import load_student

    run, record = context.run, context.checkpoint
    images_NHWC, labels_N = context.test_images(record.spec.input_px)
    torch_NC = evaluate.logits(load_student(record.spec, run / record.path), record.spec, images_NHWC)
    ladder, logits = verify.ladder(
        torch_NC,
        context.models,
        run=run.path,
        images_NHWC=images_NHWC,
        labels_N=labels_N,
        settings=context.recipe.export,
    )
    artifacts.LADDER.write(run, ladder)
    default_NC = logits[context.default_graph]
    save_arrays(artifacts.MISTAKES.path_in(run), **verify.mistakes(images_NHWC, labels_N, default_NC))
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
    save_arrays(
        artifacts.PREDICTIONS.path_in(run), **{name: logits_NC.argmax(axis=1) for name, logits_NC in logits.items()}
    )
    failed = [gate for gate in ladder.gates if not gate.passed]
    if failed:
        gates = ", ".join(f"{gate.name} is {gate.value:.6g} (wanted {gate.bound})" for gate in failed)
        raise GateError(f"verify: {gates}", f"see {artifacts.LADDER.path_in(run)}")


STEP = Step(
    name="verify",
    version=2,
    after=("distill", "export", "quantize", "keep"),
    inputs=export.inputs,
    outputs=("verify/*",),
    work=work,
)
