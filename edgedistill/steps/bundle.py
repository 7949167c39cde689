"""bundle: the folder that is copied to a device."""

from __future__ import annotations

from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

HOST_IMAGES = 500


def shipped_images(context: Context) -> int:
    """Number of test images in the bundle."""
    return max(HOST_IMAGES, context.recipe.bench.accuracy_images)


def inputs(context: Context) -> dict[str, str]:
    """Hash of the bundle's programs, which may be of a newer version than the graphs, and the number of images."""
    from edgedistill.devices import bundle

    return {"programs": digest(bundle.programs()), "images": str(shipped_images(context))}


def work(context: Context) -> None:
    """Write the graphs, the programs, a sample of the test images with labels, and the host's predictions."""
    from edgedistill.data.splits import evenly_spaced
    from edgedistill.devices.bundle import model_name, write_bundle

    record = context.checkpoint
    images_NHWC, labels_N = context.test_images(record.spec.input_px)
    predictions = artifacts.PREDICTIONS.read(context.run)
    rows = evenly_spaced(len(labels_N), shipped_images(context))
    description = {
        "name": context.recipe.name,
        "classes": list(record.classes),
        "input_px": record.spec.input_px,
        "store_px": context.splits.train.px,
        "fit": context.recipe.data.fit,
        "default": context.default_graph,
        "licence": context.splits.licence,
    }
    write_bundle(
        context.run / artifacts.BUNDLE,
        [(context.run / model.path, model) for model in context.models],
        description=description,
        images_NHWC=images_NHWC[rows],
        labels_N=labels_N[rows],
        host_predictions={model_name(model): predictions[model_name(model)][rows] for model in context.models},
    )


STEP = Step(
    name="bundle",
    version=2,
    after=("distill", "export", "quantize", "keep", "verify"),
    inputs=inputs,
    outputs=("bundle/*",),
    work=work,
)
