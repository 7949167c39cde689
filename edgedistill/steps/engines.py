"""engines: TensorRT engines of the graphs, built ahead of time, without a GPU; the graph for ncnn."""

from __future__ import annotations

from dataclasses import replace

from edgedistill.console import say
from edgedistill.export import rtx_builder
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

COMPARED = 256  # images of train on which ncnn is compared with the fp32 graph


def inputs(context: Context) -> dict[str, str]:
    """Hash of the engine settings, and the builder's version: installing a builder later makes the step run.

    With ncnn, the converter's version and the bounds of its gate.
    """
    hashes = {"engines": digest(context.recipe.export.engines), "builder": rtx_builder.version()}
    if context.recipe.export.ncnn:
        from edgedistill.export import ncnn

        settings = context.recipe.export
        hashes |= {"ncnn": digest([ncnn.version(), settings.min_agreement, settings.max_relative_error])}
    return hashes


def work(context: Context) -> None:
    """Build the engines of every graph, or record why there are none."""
    from edgedistill.export import engines

    folder = artifacts.NO_ENGINES.path_in(context.run).parent
    built = engines.write(context.models, context.run.path, folder=folder, capabilities=context.recipe.export.engines)
    for engine in built:
        if engine.failed:
            say(f"  {engine.artefact} for {engine.capability} does not build: {engine.failed}")
    if not built:
        say(f"  none: {artifacts.NO_ENGINES.read(context.run)['why']}")
    if context.recipe.export.ncnn:
        from edgedistill.export import ncnn

        fp32 = context.exported[0]
        images_NHWC = context.calibration_images(context.checkpoint.spec.input_px)[:COMPARED]
        model = ncnn.convert(
            context.run / fp32.path, fp32, images_NHWC=images_NHWC, folder=folder, settings=context.recipe.export
        )
        artifacts.NCNN.write(context.run, [replace(model, path=f"engines/{model.path}")])
        say(f"  {model.name}: {', '.join(f'{name} {share:.4g}' for name, share in model.parity.items())}")


STEP = Step(name="engines", version=1, after=("export", "quantize"), inputs=inputs, outputs=("engines/*",), work=work)
