"""bundle: the folder that is copied to a device."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from edgedistill.devices.bundle import PATTERNS
from edgedistill.records import OnnxModel
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

if TYPE_CHECKING:
    import numpy as np

HOST_IMAGES = 500


def shipped_images(context: Context) -> int:
    """Number of test images in the bundle."""
    return max(HOST_IMAGES, context.recipe.bench.accuracy_images)


def shipped_rows(context: Context, n: int) -> np.ndarray:
    """Rows of the images of the bundle, of `n`, evenly spaced, int64.

    Where a device answers another number than is usual, they are in random order: it takes the first ones, and sorted
    images begin with the first class.
    """
    import numpy as np

    from edgedistill.data.splits import evenly_spaced

    rows = evenly_spaced(n, shipped_images(context))
    return np.random.default_rng(0).permutation(rows) if is_shuffled(context) else rows


def is_shuffled(context: Context) -> bool:
    """Whether the images of the bundle are in random order; those of most runs keep the order of older versions."""
    return context.recipe.bench.accuracy_images != HOST_IMAGES


def inputs(context: Context) -> dict[str, str]:
    """Hashes of the programs, which may be newer than the graphs, and of licenses; the images and the card's text."""
    from edgedistill.devices import bundle
    from edgedistill.sources import licenses

    ncnn = [model for model in context.shipped_models if model.target == "ncnn"]
    return {
        "programs": digest(bundle.programs()),
        "images": str(shipped_images(context)),
        "licenses": licenses.fingerprint(context.recipe, context.base),
        **({"ncnn": digest([model.sha256 for model in ncnn])} if ncnn else {}),
        **({"order": "random"} if is_shuffled(context) else {}),
        **({"about": context.recipe.about} if context.recipe.about else {}),
    }


def work(context: Context) -> None:
    """Write graphs, programs, test images with labels and the host's predictions, a description and a model card."""
    from edgedistill.devices.bundle import model_name, write_bundle
    from edgedistill.report import card, facts
    from edgedistill.sources import licenses, terms

    record = context.checkpoint
    images_NHWC, labels_N = context.compared_images(record.spec.input_px)
    predictions = artifacts.PREDICTIONS.read(context.run)
    rows = shipped_rows(context, len(labels_N))
    licences, unknown = licenses.of_run(context.run, context.recipe), artifacts.UNKNOWN.read(context.run)
    models = context.shipped_models
    artifacts.DESCRIPTION.path_in(context.run).unlink(missing_ok=True)  # a broken one is no reason to keep it
    # the recipe as written is saved when the step is committed
    present = replace(facts.read(context.run), recipe=context.recipe.model_dump(mode="json"))
    description = {
        "name": context.recipe.name,
        "classes": list(record.classes),
        "input_px": record.spec.input_px,
        "store_px": context.view.px,
        "fit": context.view.fit,
        "range": context.view.limits,
        "default": context.default_graph,
        "licence": licences[0].licence,
        "licences": [asdict(entry) for entry in licences],
        "commercial": terms.overall(entry.commercial for entry in licences),
        "unknown": {
            "coverage": unknown.coverage,
            "accuracy": unknown.accuracy,
            "answered": unknown.answered,
            "images": unknown.expected_on,
            "shares": list(unknown.shares),
        },
        "rules": {model.name: asdict(unknown.rules[_verified_as(model)]) for model in models},
    }
    write_bundle(
        context.run / artifacts.BUNDLE,
        [(context.run / model.path, model) for model in models],
        description=description,
        images_NHWC=images_NHWC[rows],
        labels_N=labels_N[rows],
        host_predictions={model_name(model): predictions[_verified_as(model)][rows] for model in models},
        card=card.markdown(replace(present, licences=licences)),
    )


def _verified_as(model: OnnxModel) -> str:
    """The graph whose answers and rule a graph has: the one for ncnn those of fp32, which it is made from."""
    return "fp32" if model.target == "ncnn" else model.name


STEP = Step(
    name="bundle",
    version=5,
    after=("weigh", "search", "folds", "distill", "export", "quantize", "keep", "verify", "unknown"),
    inputs=inputs,
    outputs=tuple(f"{artifacts.BUNDLE}/{pattern}" for pattern in PATTERNS),
    work=work,
    commits=True,
)
