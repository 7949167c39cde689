"""A candidate's score: accuracy on val after a short distillation, of the student or of its int8 graph."""

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
CALIBRATION = 64  # calibration images of a candidate's int8 graph that is scored by accuracy
IMAGES = 8  # images for latency and its calibration, where accuracy does not matter
# packages whose versions determine a candidate's graph
EXPORTERS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")


def score(context: Context, spec: StudentSpec, seed: int, rungs: Rungs) -> tuple[float, dict[str, float]]:
    """Distill the candidate for `search.steps` steps; return its accuracy on val by `search.objective`, and facts.

    Args:
        context: the run.
        spec: the candidate.
        seed: seed of its training.
        rungs: functions called with the score on val after a step, by step. Rungs score the student in float also if
            the objective is int8: exporting a graph per rung would cost too much.
    """
    from edgedistill.distill import loop
    from edgedistill.students import space

    recipe = context.recipe
    judges = {step: partial(_judge, recipe.data.score, judge) for step, judge in rungs.items()}
    with bar(f"try {space.describe(spec)}", recipe.search.steps) as progress:
        model, task = workers.prepare_training(
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
    """Accuracy on val of the student's int8 graph for CPUs."""
    from edgedistill.distill import evaluate
    from edgedistill.export.infer import predict_onnx

    splits = context.splits
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
        path, _ = graph(
            context, spec, folder=Path(folder), precision="int8", target="cpu", model=model, images=CALIBRATION
        )
        logits_NC = predict_onnx(path, np.asarray(splits.train.resized(spec.input_px)[splits.val_rows]))
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
    """Export the candidate (untrained unless a `model` is given) as the graph to be deployed on a target.

    Raises:
        UnfitError: it cannot be exported or quantized with the recipe's settings.
    """
    from edgedistill.export import onnx, quantize
    from edgedistill.students import space
    from edgedistill.students.build import build_student

    images_NHWC = context.calibration_images(spec.input_px)[:images]
    path = folder / "student.fp32.onnx"
    # a barely trained net's logits are nearly equal, so agreement of labels is no measure of parity here
    loose = context.recipe.export.model_copy(update={"min_agreement": 0.0})
    # the ranges of an untrained net do not change its latency, so the simplest method suffices
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
    except Exception as error:  # torch.export's errors share no base class; the search goes on without this net
        raise UnfitError(f"{space.describe(spec)}: {' '.join(str(error).split())[:300]}") from error
    return folder / int8.path, int8


def export_settings(context: Context) -> dict[str, Any]:
    """The export settings that a candidate's graph depends on."""
    return context.recipe.export.for_key(exclude={"fp16", "engines"})


def architecture(context: Context, spec: StudentSpec, precision: str, target: str) -> str:
    """Cache key of a candidate's graph: hash of the candidate, the export settings and the packages' versions."""
    versions = {name: metadata.version(name) for name in ("edgedistill", *EXPORTERS)}
    candidate = [spec.family, spec.options, spec.input_px, spec.num_classes]
    return digest([candidate, precision, target, export_settings(context), versions])[:32]
