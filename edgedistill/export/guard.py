"""The accuracy guard: if int8 loses more accuracy than the recipe allows, the most sensitive layers stay in float.

Accuracy is compared with fp32's on val. Layers are ranked on a few images without labels, by the noise that each one
alone adds to the logits. N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from onnx import ModelProto

from edgedistill.agent import metrics
from edgedistill.console import bar
from edgedistill.data.splits import evenly_spaced
from edgedistill.export import calibrate, graphs, qdq
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import layers, make_plan
from edgedistill.records import Drop, Guarded, Target

RANKING_IMAGES = 32  # images on which layers are ranked
UNLABELED_IMAGES = 256  # calibration images on which labels are compared with fp32's
SCREENING_IMAGES = 64  # images of val that decide whether a graph is run on all of them
SIMULATED_IMAGES = 500  # images of val for a graph that can only be simulated, which takes 20 times as long
LAYERS_PER_FLOAT_LAYER = 4  # at most one layer in four stays float: with more, fp32 is the better graph


@dataclass(frozen=True, kw_only=True)
class QatCandidate:
    """A float graph and ranges from quantization-aware training.

    `make` builds their int8 graph with the named layers in float; `agreement` is the share of images on which that
    graph predicts the label of the trained net.
    """

    model: ModelProto
    ranges: Mapping[str, calibrate.Range]
    make: Callable[[Sequence[str]], ModelProto]
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The graph chosen for a target, its guard record, and, if layers were ranked, their noise, worst first."""

    graph: ModelProto
    guarded: Guarded
    sensitivity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The fp32 graph, images and bound with which int8 graphs are compared.

    Attributes:
        model: the fp32 graph.
        ranges: its calibrated ranges.
        calibration_NHWC: the calibration images.
        val_NHWC: the images of val.
        val_labels_N: their labels.
        max_drop: percentage points of accuracy that may be lost.
        score: "top1" or "balanced".
    """

    model: ModelProto
    ranges: Mapping[str, calibrate.Range]
    calibration_NHWC: np.ndarray
    val_NHWC: np.ndarray
    val_labels_N: np.ndarray
    max_drop: float
    score: str

    @cached_property
    def unlabeled_NHWC(self) -> np.ndarray:  # noqa: N802 - the shape suffix
        """The calibration images on which labels are compared, at most UNLABELED_IMAGES."""
        every = max(1, len(self.calibration_NHWC) // UNLABELED_IMAGES)
        return self.calibration_NHWC[::every][:UNLABELED_IMAGES]

    @cached_property
    def fp32_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """fp32's labels on val and on the unlabeled images."""
        graph = self.model.SerializeToString()
        return predict_onnx(graph, self.val_NHWC).argmax(1), predict_onnx(graph, self.unlabeled_NHWC).argmax(1)

    def measure_drop(self, graph: ModelProto, target: Target, screening: bool = False) -> Drop:
        """Measure the accuracy that an int8 graph loses; with `screening`, on SCREENING_IMAGES images of val only.

        A simulated graph is run on at most SIMULATED_IMAGES images of val.
        """
        serialized, simulate = graph.SerializeToString(), target != "cpu"
        max_val, max_unlabeled = len(self.val_labels_N), len(self.unlabeled_NHWC)
        if simulate or screening:
            max_val = SCREENING_IMAGES if screening else SIMULATED_IMAGES
            max_unlabeled = max_val // 4
        rows = evenly_spaced(len(self.val_labels_N), max_val)
        unlabeled_rows = evenly_spaced(len(self.unlabeled_NHWC), max_unlabeled)
        int8_N = predict_onnx(serialized, self.val_NHWC[rows], simulate=simulate).argmax(1)
        unlabeled_int8_N = predict_onnx(serialized, self.unlabeled_NHWC[unlabeled_rows], simulate=simulate).argmax(1)
        fp32_N, unlabeled_fp32_N = self.fp32_labels[0][rows], self.fp32_labels[1][unlabeled_rows]
        loss = metrics.drop(self.val_labels_N[rows], fp32_N, int8_N, self.score)
        points, low, high = (100 * fraction for fraction in loss)
        differ_N = np.concatenate([int8_N != fp32_N, unlabeled_int8_N != unlabeled_fp32_N])
        return Drop(
            points=points,
            low=low,
            high=high,
            n=len(rows),
            differ=100 * float(np.mean(differ_N)),
            images=len(rows) + len(unlabeled_rows),
        )

    def holds(self, drop: Drop) -> bool:
        """Whether the loss on val is within the bound, or explained by one image of a small val.

        The second case: one image of val is more than the bound, one was lost, and the share of labels that changed on
        all images is within the bound.
        """
        one_image = self.score == "top1" and drop.points <= 100 / drop.n
        return drop.points <= self.max_drop or (one_image and drop.differ <= self.max_drop)

    def choose_graph(
        self, target: Target, make: Callable[[Sequence[str]], ModelProto], qat: QatCandidate | None = None
    ) -> Outcome:
        """Choose the target's graph within the bound with the fewest float layers; all int8 if there is none.

        Args:
            target: "cpu" or "tensorrt".
            make: builds the graph with the named layers in float.
            qat: a candidate from quantization-aware training; it replaces the graph of `make` if it loses no more.
        """
        model, ranges, graph = self.model, self.ranges, make(())
        drop = self.measure_drop(graph, target)
        guarded = Guarded(target=target, holds=self.holds(drop), max_drop=self.max_drop, drop=drop)
        if qat:
            qat_graph = qat.make(())
            qat_drop = self.measure_drop(qat_graph, target)
            if qat_drop.points <= drop.points:
                model, ranges, make, graph = qat.model, qat.ranges, qat.make, qat_graph
                guarded = replace(guarded, holds=self.holds(qat_drop), drop=qat_drop, before=drop, qat=qat.agreement)
        if guarded.holds:
            return Outcome(graph=graph, guarded=guarded)
        ranked = sensitivity(model, ranges, target, self.calibration_NHWC)
        worst = list(ranked)[: max(1, len(ranked) // LAYERS_PER_FLOAT_LAYER)]
        counts = _float_counts(len(worst))
        with bar(f"keep layers in float for {target}", len(counts)) as advance:
            for count in counts:
                mixed_graph = make(worst[:count])
                hopeless = self.measure_drop(mixed_graph, target, screening=True).low > self.max_drop
                advance(1)
                if hopeless:
                    continue
                mixed_drop = self.measure_drop(mixed_graph, target)
                if self.holds(mixed_drop):
                    floats = tuple(worst[:count])
                    guarded = replace(guarded, holds=True, drop=mixed_drop, floats=floats, before=guarded.drop)
                    return Outcome(graph=mixed_graph, guarded=guarded, sensitivity=ranked)
        return Outcome(graph=graph, guarded=guarded, sensitivity=ranked)


def _float_counts(max_count: int) -> list[int]:
    """Numbers of float layers to try: one more each time, later a third more, up to `max_count`."""
    counts = [1]
    while counts[-1] < max_count:
        counts.append(min(max_count, max(counts[-1] + 1, counts[-1] * 4 // 3)))
    return counts


def sensitivity(
    model: ModelProto, ranges: Mapping[str, calibrate.Range], target: Target, images_NHWC: np.ndarray
) -> dict[str, float]:
    """Measure the noise of the logits with each layer alone in int8; returns layer -> noise, worst first.

    Noise is the root mean square difference divided by the standard deviation of the float logits.
    """
    prepared = qdq.prepare(model, target)
    plan = make_plan(prepared, target)
    affines = qdq.affines(prepared, plan, ranges)
    ranking_NHWC = images_NHWC[evenly_spaced(len(images_NHWC), RANKING_IMAGES)]
    float_NC = predict_onnx(prepared.SerializeToString(), ranking_NHWC)
    scale = float(float_NC.std()) or 1.0
    noise = {}
    names = [name for name in layers(prepared) if name in plan.weights]
    inputs = {node.name: node.input[0] for node in prepared.graph.node}
    with bar(f"rank {len(names)} layers", len(names)) as advance:
        for name in names:
            layer_plan = replace(
                plan,
                pairs=(inputs[name],),
                quantized_reads=frozenset({(name, inputs[name])}),
                weights=frozenset({name}),
                absorbed=frozenset(),
            )
            graph = graphs.without_unread(qdq.quantize_graph(prepared, layer_plan, affines))
            int8_NC = predict_onnx(graph.SerializeToString(), ranking_NHWC)
            noise[name] = float(np.sqrt(np.mean((int8_NC - float_NC) ** 2))) / scale
            advance(1)
    return dict(sorted(noise.items(), key=lambda pair: -pair[1]))
