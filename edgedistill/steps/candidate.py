"""A candidate's score: accuracy on val, and agreement with the teacher, after a short distillation.

They are those of the student, or of its int8 graph.
"""

from __future__ import annotations

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
from edgedistill.run import interrupts
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

    Facts of a method with a teacher are "agreement", the share of held-out images that get the teacher's class, and
    its standard error.

    Args:
        context: the run.
        spec: the candidate.
        seed: seed of its training.
        rungs: functions called with the agreement, else the score on val, after a step. They score the student in float
            also if the objective is int8: exporting a graph per rung would cost too much.
    """
    from edgedistill.distill import evaluate, loop
    from edgedistill.students import space

    recipe = context.recipe
    has_val = len(context.splits.val_rows) > 0
    judges = {step: partial(_judge, recipe.data.score, judge) for step, judge in rungs.items() if has_val}
    with bar(f"try {space.describe(spec)}", recipe.search.steps) as progress:
        model, task = workers.prepare_training(
            context, spec, steps=recipe.search.steps, seed=seed, held_out=HELD_OUT, rungs=judges
        )
        fitted = loop.fit(model, task, on_step=lambda *step: progress(1), rungs=judges)
    by = recipe.data.score
    # two labels a class: the fold's student is trained on one of each, and none is left for val
    val = fitted.val or chance(len(context.splits.classes))
    predict: Callable[[Any], Any] = partial(evaluate.logits, fitted.model, spec)
    if recipe.search.objective == "int8":
        predict = int8_predictor(context, fitted.model, spec)
    if recipe.search.objective == "int8" and fitted.val:
        val = evaluate.score(predict(task.material.images_NHWC[task.material.val]), task.material.val_labels)
    loss = fitted.loss if fitted.val else 0.0
    facts = {"standard_error": _standard_error(val, by), "loss": loss, "seconds": round(fitted.seconds, 2)}
    if agreement := evaluate.agreement(task, predict):
        facts |= {"agreement": agreement.score(by), "agreement_error": _standard_error(agreement, by)}
    return val.score(by), facts


def chance(classes: int) -> Accuracy:
    """The accuracy of a candidate without val, known to be anything: the teacher decides, else the first candidate."""
    share = 1.0 / classes
    return Accuracy(n=0, top1=share, top1_ci95=(0.0, 1.0), balanced=share, balanced_ci95=(0.0, 1.0))


def _standard_error(accuracy: Accuracy, by: Literal["top1", "balanced"]) -> float:
    low, high = accuracy.interval(by)
    return (high - low) / 2 / Z95


def _judge(by: Literal["top1", "balanced"], judge: Callable[[float], object], val: Accuracy) -> None:
    judge(val.score(by))


def int8_predictor(context: Context, model: nn.Module, spec: StudentSpec) -> Callable[[Any], Any]:
    """The student's int8 graph for CPUs, as a function from images to logits [N, C]."""
    from edgedistill.export.infer import predict_onnx

    with interrupts.temporary_folder() as folder:
        path, _ = graph(context, spec, folder=folder, precision="int8", target="cpu", model=model, images=CALIBRATION)
        serialized = path.read_bytes()
    return lambda images_NHWC: predict_onnx(serialized, np.asarray(images_NHWC))


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
    return context.recipe.export.for_key(exclude={"fp16", "engines", "ncnn"})


def ships_int8(context: Context) -> bool:
    """Whether a run makes an int8 graph for CPUs, so that its students answer in int8, too."""
    settings = context.recipe.quantize
    return settings.enabled and "cpu" in settings.targets


def answered_by(context: Context) -> str:
    """Hash of the settings that the answers of a trained student's int8 graph depend on."""
    settings = context.recipe.quantize
    return digest([export_settings(context), settings.method, settings.calibration_images])


def architecture(context: Context, spec: StudentSpec, precision: str, target: str) -> str:
    """Cache key of a candidate's graph: hash of the candidate, the export settings and the packages' versions."""
    versions = {name: metadata.version(name) for name in ("edgedistill", *EXPORTERS)}
    candidate = [spec.family, spec.options, spec.input_px, spec.num_classes]
    return digest([candidate, precision, target, export_settings(context), versions])[:32]
