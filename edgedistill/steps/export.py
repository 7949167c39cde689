"""export: torch to ONNX with the preprocessing inside; the graph's outputs must match torch's."""

from __future__ import annotations

from dataclasses import replace

from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

FIRST_BATCH = 64  # images on which the fp32 graph is compared with torch; verify compares both on all of test


def inputs(context: Context) -> dict[str, str]:
    """Hash of the recipe's section without what only the step `engines` reads; the student, if labels alone ship."""
    hashes = {"settings": digest(context.recipe.export.for_key(exclude={"engines", "ncnn"}))}
    alone = artifacts.shipped(context.run)
    return hashes if alone == context.run else {**hashes, "labels alone": artifacts.RESULT.read(alone).sha256}


def work(context: Context) -> None:
    """Export the student in fp32, and in fp16 if the recipe enables it."""
    from edgedistill.export import onnx
    from edgedistill.students.build import load_student

    record, path = context.checkpoint, artifacts.FP32_GRAPH.path_in(context.run)
    images_NHWC = context.calibration_images(record.spec.input_px)[:FIRST_BATCH]
    model = load_student(record.spec, context.shipped.run / record.path)
    fp32 = onnx.export(model, record.spec, path=path, images_NHWC=images_NHWC, settings=context.recipe.export)
    graphs = [replace(fp32, path=f"export/{path.name}", parent_sha256=record.sha256)]
    if context.recipe.export.fp16 and (half := onnx.half(path, graphs[0], images_NHWC)):
        graphs.append(replace(half, path=f"export/{half.path}"))
    artifacts.EXPORTED.write(context.run, graphs)


STEP = Step(name="export", version=2, after=("distill",), inputs=inputs, outputs=("export/*",), work=work)
