"""engines: TensorRT engines of the graphs, built ahead of time, without a GPU."""

from __future__ import annotations

from edgedistill.console import say
from edgedistill.export import rtx_builder
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step


def inputs(context: Context) -> dict[str, str]:
    """Hash of the engine settings, and the builder's version: installing a builder later makes the step run."""
    return {"engines": digest(context.recipe.export.engines), "builder": rtx_builder.version()}


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


STEP = Step(name="engines", version=1, after=("export", "quantize"), inputs=inputs, outputs=("engines/*",), work=work)
