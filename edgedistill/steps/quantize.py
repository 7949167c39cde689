"""quantize: one calibration on images of train, one int8 graph per target, each checked on images that did not train.

If the recipe enables it, the student is first trained further in the arithmetic of its int8 graph (quantization-aware
distillation): with the recipe's method, weighted sources and cached pseudo-labels, and with the source heads of the
last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.console import log_training, say
from edgedistill.errors import InputError
from edgedistill.records import OnnxModel, Target
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgedistill.export.guard import Witnesses
    from edgedistill.export.qdq import Ranges
    from edgedistill.export.quantize import QatGraph

COMPARED = 1000  # images on which the trained graph is compared with the fake-quantized student


def inputs(context: Context) -> dict[str, str]:
    """Hash of the recipe's section without what only `keep` reads: another `min_speedup` needs no new training.

    Where the recipe trains with a peer or states a prior, also the version of a training in int8 arithmetic: the second
    learns from the peer, too, and is told the prior again at its end.
    """
    recipe = context.recipe
    hashes = {"settings": digest(recipe.quantize.for_key(exclude={"min_speedup"}))}
    is_new = recipe.quantize.qat is not None and (context.has_peer or isinstance(recipe.data.prior, Mapping))
    return hashes | ({"qat": "2"} if is_new else {})


def work(context: Context) -> None:
    """Quantize the fp32 graph for every target."""
    from edgedistill.export.quantize import quantize

    recipe, graphs = context.recipe, list[OnnxModel]()
    if recipe.quantize.enabled:
        px, fp32 = context.checkpoint.spec.input_px, context.exported[0]
        graphs = quantize(
            context.run / fp32.path,
            fp32,
            images_NHWC=context.calibration_images(px),
            settings=recipe.quantize,
            folder=artifacts.QUANTIZED.path_in(context.run).parent,
            witnesses=witnesses(context, px),
            score=recipe.data.score,
            tune=tuner(context),
            half=len(context.exported) > 1,
            time=partial(speed_ratio, context),
        )
    artifacts.QUANTIZED.write(context.run, [replace(graph, path=f"quantize/{graph.path}") for graph in graphs])


def witnesses(context: Context, px: int) -> Witnesses:
    """The guard's images: val and the reserve; with folds, where val trains, too, the images that are compared.

    Those are the test images, or the reserve, or images that trained where it is small. The temperature is then that of
    the folds' students.
    """
    import numpy as np

    from edgedistill.export.guard import TRAINED, Witnesses
    from edgedistill.labels.calibration import temperature_of

    splits = context.splits
    if splits.protocol == "folds":
        images_NHWC, labels_N = context.compared_images(px)
        units_N = splits.test_set.units_N if splits.n_test else splits.units_N[splits.witness_rows]
        if not splits.n_test:
            labels_N = np.where(np.isin(splits.witness_rows, splits.reserve_rows), labels_N, TRAINED)
        answers = artifacts.FOLD_ANSWERS.read(context.shipped.run)
        return Witnesses(
            images_NHWC=np.asarray(images_NHWC),
            labels_N=labels_N,
            units_N=units_N,
            temperature=temperature_of(answers["fp32"], answers["labels"]),
        )
    rows = np.concatenate([splits.val_rows, splits.reserve_rows])
    return Witnesses(
        images_NHWC=np.asarray(splits.train.resized(px)[rows]),
        labels_N=np.concatenate([splits.val_labels, np.full(len(splits.reserve_rows), -1, dtype=np.int64)]),
        units_N=splits.units_N[rows],
    )


def speed_ratio(context: Context, graph: ModelProto, target: Target) -> tuple[float, float, float] | None:
    """The time of the higher precision over that of an int8 graph on this machine; None where it does not run here."""
    from edgedistill.steps import timing

    return timing.graph_ratio(graph, context.exported, target, partial(timing.ratio, context))


def tuner(context: Context) -> Callable[[ModelProto, Ranges, Target], QatGraph] | None:
    """The function that trains a graph further for a target; None if the recipe does not enable it."""
    if context.recipe.quantize.qat is None:
        return None
    return lambda model, ranges, target: tune(context, model, ranges, target)


def tune(context: Context, model: ModelProto, ranges: Ranges, target: Target) -> QatGraph:
    """Train the fp32 graph for `quantize.qat.steps` steps in the fake quantization of a target.

    Raises:
        InputError: several processes were started; this training supports one.
        EdgeDistillError: the graph has an operator that cannot be trained, or the loss is no longer finite.
    """
    import numpy as np

    from edgedistill.distill import batches, evaluate, loop
    from edgedistill.distributed import processes
    from edgedistill.export import fake_quant
    from edgedistill.export.quantize import QatGraph
    from edgedistill.steps.distill import at_prior

    if processes.team().size > 1:
        raise InputError("quantize.qat: trains in one process", "train with torchrun, then run `edgedistill export`")
    recipe, spec, qat = context.recipe, context.checkpoint.spec, context.recipe.quantize.qat
    assert qat is not None, "the recipe enables it"
    # bfloat16 is coarser than int8; the modules named by `freeze` do not exist in a graph; the heads are trained; and a
    # graph's nodes are interpreted, which is nothing to compile
    changes = {"precision": "float32", "freeze": (), "head_start": "random", "compile": False}
    shipped = context.shipped.shipping().taught_by_peer()  # as the student's own training was
    settings = shipped.recipe.distill.model_copy(update={"lr": qat.lr, **changes})
    material = shipped.material(spec.input_px)
    task = batches.Task(spec=spec, material=material, settings=settings, steps=qat.steps, seed=recipe.seed)
    net = fake_quant.student(model, ranges, target, qat.ranges == "learned")
    folder = context.run / artifacts.QAT / target
    heads = source_heads(artifacts.LAST_CHECKPOINT.path_in(shipped.run))
    with log_training(folder / "tensorboard", qat.steps) as on_step:
        fitted = loop.fit(net, task, folder=folder, on_step=on_step, heads=heads)
    fitted = at_prior(shipped, fitted, spec)
    images_NHWC = np.asarray(context.calibration_images(spec.input_px)[:COMPARED])
    fake_N = evaluate.logits(fitted.model, spec, images_NHWC).argmax(axis=1)
    trained, learned = fake_quant.trained_graph(model, fitted.model)
    say(f"  {target}: {qat.steps} steps of quantization-aware distillation in {fitted.seconds:.0f} s")
    return QatGraph(model=trained, ranges=learned, images_NHWC=images_NHWC, labels_N=fake_N)


def source_heads(path: Path) -> dict[str, object] | None:
    """The source heads of the training's last checkpoint; None if it does not exist."""
    import torch

    if not path.is_file():
        return None
    heads: dict[str, object] = torch.load(path, map_location="cpu", weights_only=True)["heads"]
    return heads


STEP = Step(
    name="quantize",
    version=4,
    after=("distill", "export"),
    inputs=inputs,
    outputs=("quantize/*",),
    scratch=("qat/*/*.*", "qat/*/tensorboard/*"),
    work=work,
)
