"""What a candidate is worth: its accuracy on val after a short distillation, of the student or of its int8 graph."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgedistill.agent.metrics import Z95
from edgedistill.console import bar
from edgedistill.errors import UnfitError
from edgedistill.records import Accuracy, OnnxModel, Precision, StudentSpec, Target
from edgedistill.run.files import digest
from edgedistill.steps import workers

if TYPE_CHECKING:
    from torch import nn

    from edgedistill.search.search import Rungs
    from edgedistill.steps.context import Context

HELD_OUT = 256  # unlabeled images that the search does not train on
CALIBRATION = 64  # images that a candidate's int8 graph is calibrated on where its accuracy counts
IMAGES = 8  # what latency is measured with and ranges are calibrated on; accuracy is not at stake
EXPORTERS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")  # whose versions decide a candidate's graph


def score(context: Context, spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
    """Distil the candidate for `search.steps` steps; its accuracy on val by `search.objective`, and facts beside it.

    Args:
        context: the run.
        spec: the candidate.
        seed: of its training.
        rungs: step -> what is called with the score on val after it. It is the student's own there, in whatever
            precision the end is scored: a graph a rung would cost more than it tells.
    """
    from edgedistill.distill import loop
    from edgedistill.students import space

    recipe = context.recipe
    judges = {step: partial(_judge, recipe.data.score, judge) for step, judge in rungs.items()}
    with bar(f"try {space.describe(spec)}", recipe.search.steps) as progress:
        model, task = workers.training(
            context, spec, steps=recipe.search.steps, seed=seed, held_out=HELD_OUT, rungs=judges
        )
        fitted = loop.fit(model, task, on_step=lambda *step: progress(1), rungs=judges)
    val = fitted.val if recipe.search.objective == "fp32" else int8_accuracy(context, fitted.model, spec)
    low, high = val.interval(recipe.data.score)
    facts = {"standard_error": (high - low) / 2 / Z95, "loss": fitted.loss, "seconds": round(fitted.seconds, 2)}
    return val.score(recipe.data.score), facts


def _judge(by: Literal["top1", "balanced"], judge: Callable[[float], object], val: Accuracy) -> None:
    judge(val.score(by))


def int8_accuracy(context: Context, model: nn.Module, spec: StudentSpec) -> Accuracy:
    """Accuracy on val of the student's int8 graph for a CPU."""
    from edgedistill.distill import evaluate
    from edgedistill.export.infer import predict_onnx

    splits = context.splits
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        path, _ = graph(
            context, spec, folder=Path(folder), precision="int8", target="cpu", model=model, images=CALIBRATION
        )
        logits_NC = predict_onnx(path, np.asarray(splits.train.at(spec.input_px)[splits.val_rows]))
    return evaluate.score(logits_NC, splits.val_labels)


def graph(
    context: Context,
    spec: StudentSpec,
    folder: Path,
    precision: Precision,
    target: Target,
    model: nn.Module | None = None,
    images: int = IMAGES,
) -> tuple[Path, OnnxModel]:
    """The candidate (untrained unless a `model` is given) as the graph that would be deployed on that target.

    Raises:
        UnfitError: it cannot be exported or quantized as the recipe says.
    """
    from edgedistill.export import onnx, quantize
    from edgedistill.students import space
    from edgedistill.students.build import build_student

    images_NHWC = context.calibration_images(spec.input_px)[:images]
    path = folder / "student.fp32.onnx"
    # nets that learned little answer with nearly equal logits, so whose label wins is no measure of parity here
    loose = context.recipe.export.model_copy(update={"min_agreement": 0.0})
    # what an untrained net's ranges are changes no latency, so the simplest rule will do
    method = "minmax" if model is None else context.recipe.quantize.method
    few = context.recipe.quantize.model_copy(
        update={"targets": (target,), "calibration_images": len(images_NHWC), "method": method}
    )
    try:
        fp32 = onnx.export(
            model or build_student(spec), spec, path=path, images_NHWC=images_NHWC[:IMAGES], settings=loose
        )
        if precision == "fp32":
            return path, fp32
        [int8] = quantize.quantize(path, fp32, images_NHWC=images_NHWC, settings=few, folder=folder)
    except OSError:
        raise
    except Exception as error:  # torch.export's errors share no base class; one net that cannot be exported is no end
        raise UnfitError(f"{space.describe(spec)}: {' '.join(str(error).split())[:300]}") from error
    return folder / int8.path, int8


def export_settings(context: Context) -> dict[str, Any]:
    """The settings of export that a candidate's graph depends on."""
    return context.recipe.export.model_dump(mode="json", exclude={"fp16", "engines"})


def architecture(context: Context, spec: StudentSpec, precision: str, target: str) -> str:
    """Hash that names a candidate's graph before there is one: the candidate, and all that makes graphs, by version."""
    versions = {name: metadata.version(name) for name in ("edgedistill", *EXPORTERS)}
    candidate = [spec.family, spec.options, spec.input_px, spec.num_classes]
    return digest([candidate, precision, target, export_settings(context), versions])[:32]
