"""engines: does TensorRT's parser take the graphs, and what becomes of them? Built ahead of time, without a GPU."""

from __future__ import annotations

from edgedistill.console import say
from edgedistill.export import rtx_builder
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step


def inputs(context: Context) -> dict[str, str]:
    """Which engines are asked for, and what would build them: a builder that is installed later builds them then."""
    return {"engines": digest(context.recipe.export.engines), "builder": rtx_builder.version()}


def work(context: Context) -> None:
    """Build the engines of every graph, or write down why there are none."""
    from edgedistill.export import engines

    folder = artifacts.NO_ENGINES.at(context.run).parent
    built = engines.write(context.models, context.run.path, folder=folder, capabilities=context.recipe.export.engines)
    for engine in built:
        if engine.failed:
            say(f"  {engine.artefact} for {engine.capability} does not build: {engine.failed}")
    if not built:
        say(f"  none: {artifacts.NO_ENGINES.read(context.run)['why']}")


STEP = Step(name="engines", version=1, after=("export", "quantize"), inputs=inputs, outputs=("engines/*",), work=work)
