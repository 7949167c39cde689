"""Quantization-aware distillation: a trained student learns on in the arithmetic of its int8 graph.

The method, the weighted sources and their cached pseudo-labels are those of the recipe, and so are the source heads,
which go on from where the training left them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgedistill.progress import say, watch
from edgedistill.records import InputError, Target

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgedistill.context import Context
    from edgedistill.export.qdq import Ranges
    from edgedistill.export.quantize import Tuned

COMPARED = 1000


def tuner(context: Context) -> Callable[[ModelProto, Ranges, Target], Tuned] | None:
    """What trains a graph on for a target, where the recipe asks for it."""
    if context.recipe.quantize.qat is None:
        return None
    return lambda model, ranges, target: tune(context, model, ranges, target)


def tune(context: Context, model: ModelProto, ranges: Ranges, target: Target) -> Tuned:
    """Train the fp32 graph `quantize.qat.steps` steps in the fake quantization of a target.

    Raises:
        InputError: several processes were started; this training is one's.
        EdgeDistillError: the graph has an operator that cannot be trained, or the loss is no longer finite.
    """
    from edgedistill.export import fake
    from edgedistill.export.quantize import Tuned
    from edgedistill.training import batches, fit, parallel

    if parallel.team().size > 1:
        raise InputError("quantize.qat: trains in one process", "train with torchrun, then run `edgedistill export`")
    recipe, spec = context.recipe, context.checkpoint.spec
    asked = recipe.quantize.qat
    assert asked is not None, "the recipe asks for it"
    # bfloat16 has fewer steps than int8 has levels; and the modules that `freeze` names are no more
    settings = recipe.distill.model_copy(update={"lr": asked.lr, "precision": "float32", "freeze": ()})
    task = batches.Task(
        spec=spec, material=context.material(spec.input_px), settings=settings, steps=asked.steps, seed=recipe.seed
    )
    net = fake.student(model, ranges, target, asked.ranges == "learned")
    folder = context.run / "qat" / target
    with watch(folder / "tensorboard", asked.steps) as on_step:
        fitted = fit.fit(net, task, folder, on_step, heads=_heads(context.run / "distill/last.pt"))
    images_NHWC = np.asarray(context.calibration_images(spec.input_px)[:COMPARED])
    fake_N = fit.logits(fitted.model, spec, images_NHWC).argmax(axis=1)
    trained, learned = fake.trained(model, fitted.model)
    say(f"  {target}: {asked.steps} steps of quantization-aware distillation in {fitted.seconds:.0f} s")
    return Tuned(model=trained, ranges=learned, images_NHWC=images_NHWC, labels_N=fake_N)


def _heads(path: Path) -> dict[str, object] | None:
    """The source heads as the training left them; None where its last checkpoint is gone."""
    import torch

    if not path.is_file():
        return None
    heads: dict[str, object] = torch.load(path, map_location="cpu", weights_only=True)["heads"]
    return heads
