"""export: torch to ONNX, preprocessing inside; the graph must answer as torch does."""

from __future__ import annotations

from dataclasses import replace

from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

FIRST_BATCH = 64  # images on which the fp32 graph is compared with torch; verify compares them on all of test


def inputs(context: Context) -> dict[str, str]:
    """The recipe's section less what only the step `engines` reads."""
    return {"settings": digest(context.recipe.export.model_dump(mode="json", exclude={"engines"}))}


def work(context: Context) -> None:
    """Export the student in fp32, and in fp16 where the recipe says so."""
    from edgedistill.export import onnx
    from edgedistill.students.build import load_student

    record, path = context.checkpoint, artifacts.FP32_GRAPH.at(context.run)
    images_NHWC = context.calibration_images(record.spec.input_px)[:FIRST_BATCH]
    model = load_student(record.spec, context.run / record.path)
    fp32 = onnx.export(model, record.spec, path=path, images_NHWC=images_NHWC, settings=context.recipe.export)
    graphs = [replace(fp32, path=f"export/{path.name}", parent_sha256=record.sha256)]
    if context.recipe.export.fp16 and (half := onnx.half(path, graphs[0], images_NHWC)):
        graphs.append(replace(half, path=f"export/{half.path}"))
    artifacts.EXPORTED.write(context.run, graphs)


STEP = Step(name="export", version=2, after=("distill",), inputs=inputs, outputs=("export/*",), work=work)
