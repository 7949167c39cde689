"""quantize: one calibration on images of train, one int8 graph a target, each held to its bound on val.

Where the recipe asks for it, the student first trains on in the arithmetic of its int8 graph (quantization-aware
distillation): the method, the weighted sources and their cached pseudo-labels are those of the recipe, and so are the
source heads, which go on from where the training left them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.console import say, watch
from edgedistill.errors import InputError
from edgedistill.records import OnnxModel, Target
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgedistill.export.qdq import Ranges
    from edgedistill.export.quantize import Tuned

COMPARED = 1000  # images on which the trained graph is compared with the fake-quantized student


def inputs(context: Context) -> dict[str, str]:
    """The recipe's section less what only `keep` reads: another speed asked for is no reason to train again."""
    return {"settings": digest(context.recipe.quantize.model_dump(mode="json", exclude={"min_speedup"}))}


def work(context: Context) -> None:
    """Quantize the fp32 graph for every target."""
    import numpy as np

    from edgedistill.export.quantize import quantize

    recipe, graphs = context.recipe, list[OnnxModel]()
    if recipe.quantize.enabled:
        splits, px, fp32 = context.splits, context.checkpoint.spec.input_px, context.exported[0]
        graphs = quantize(
            context.run / fp32.path,
            fp32,
            images_NHWC=context.calibration_images(px),
            settings=recipe.quantize,
            folder=artifacts.QUANTIZED.at(context.run).parent,
            val=(np.asarray(splits.train.at(px)[splits.val_rows]), splits.val_labels),
            score=recipe.data.score,
            tune=tuner(context),
            half=len(context.exported) > 1,
        )
    artifacts.QUANTIZED.write(context.run, [replace(graph, path=f"quantize/{graph.path}") for graph in graphs])


def tuner(context: Context) -> Callable[[ModelProto, Ranges, Target], Tuned] | None:
    """The function that trains a graph on for a target; None where the recipe does not ask for it."""
    if context.recipe.quantize.qat is None:
        return None
    return lambda model, ranges, target: tune(context, model, ranges, target)


def tune(context: Context, model: ModelProto, ranges: Ranges, target: Target) -> Tuned:
    """Train the fp32 graph `quantize.qat.steps` steps in the fake quantization of a target.

    Raises:
        InputError: several processes were started; this training is one's.
        EdgeDistillError: the graph has an operator that cannot be trained, or the loss is no longer finite.
    """
    import numpy as np

    from edgedistill.distill import batches, evaluate, loop
    from edgedistill.distributed import processes
    from edgedistill.export import fake_quant
    from edgedistill.export.quantize import Tuned

    if processes.team().size > 1:
        raise InputError("quantize.qat: trains in one process", "train with torchrun, then run `edgedistill export`")
    recipe, spec, qat = context.recipe, context.checkpoint.spec, context.recipe.quantize.qat
    assert qat is not None, "the recipe asks for it"
    # bfloat16 has fewer steps than int8 has levels; and the modules that `freeze` names are no more
    settings = recipe.distill.model_copy(update={"lr": qat.lr, "precision": "float32", "freeze": ()})
    task = batches.Task(
        spec=spec, material=context.material(spec.input_px), settings=settings, steps=qat.steps, seed=recipe.seed
    )
    net = fake_quant.student(model, ranges, target, qat.ranges == "learned")
    folder = context.run / artifacts.QAT / target
    heads = source_heads(artifacts.LAST_CHECKPOINT.at(context.run))
    with watch(folder / "tensorboard", qat.steps) as on_step:
        fitted = loop.fit(net, task, folder=folder, on_step=on_step, heads=heads)
    images_NHWC = np.asarray(context.calibration_images(spec.input_px)[:COMPARED])
    fake_N = evaluate.logits(fitted.model, spec, images_NHWC).argmax(axis=1)
    trained, learned = fake_quant.trained(model, fitted.model)
    say(f"  {target}: {qat.steps} steps of quantization-aware distillation in {fitted.seconds:.0f} s")
    return Tuned(model=trained, ranges=learned, images_NHWC=images_NHWC, labels_N=fake_N)


def source_heads(path: Path) -> dict[str, object] | None:
    """The source heads as the training left them; None where its last checkpoint is gone."""
    import torch

    if not path.is_file():
        return None
    heads: dict[str, object] = torch.load(path, map_location="cpu", weights_only=True)["heads"]
    return heads


STEP = Step(
    name="quantize",
    version=2,
    after=("distill", "export"),
    inputs=inputs,
    outputs=("quantize/*",),
    scratch=("qat/*/*.*", "qat/*/tensorboard/*"),
    work=work,
)
