"""The accuracy guard: bounds the accuracy that int8 loses; if it loses more, the most sensitive layers stay float.

Layers are ranked on a few images without labels, by the noise that each one alone adds to the logits. The bound is
checked on val. N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from onnx import ModelProto

from edgedistill.agent import metrics
from edgedistill.console import bar
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
        images_NHWC: the calibration images.
        val: images and their labels.
        max_drop: percentage points of accuracy that may be lost.
        score: "top1" or "balanced".
    """

    model: ModelProto
    ranges: Mapping[str, calibrate.Range]
    images_NHWC: np.ndarray
    val: tuple[np.ndarray, np.ndarray]
    max_drop: float
    score: str

    @cached_property
    def unlabeled(self) -> np.ndarray:
        """The calibration images on which labels are compared, at most UNLABELED_IMAGES."""
        return self.images_NHWC[:: max(1, len(self.images_NHWC) // UNLABELED_IMAGES)][:UNLABELED_IMAGES]

    @cached_property
    def fp32_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """fp32's labels on val and on the unlabeled images."""
        graph = self.model.SerializeToString()
        return predict_onnx(graph, self.val[0]).argmax(1), predict_onnx(graph, self.unlabeled).argmax(1)

    def drop(self, graph: ModelProto, target: Target, screening: bool = False) -> Drop:
        """Measure the accuracy that an int8 graph loses; with `screening`, on SCREENING_IMAGES images of val only.

        A simulated graph is run on at most SIMULATED_IMAGES images of val.
        """
        serialized, simulate = graph.SerializeToString(), target != "cpu"
        max_images = (
            SCREENING_IMAGES if screening else SIMULATED_IMAGES if simulate else max(len(self.val[1]), UNLABELED_IMAGES)
        )
        rows = evenly_spaced(len(self.val[1]), max_images)
        unlabeled_rows = evenly_spaced(
            len(self.unlabeled), max_images // 4 if simulate or screening else len(self.unlabeled)
        )
        predicted_N = predict_onnx(serialized, self.val[0][rows], simulate=simulate).argmax(1)
        unlabeled_predicted_N = predict_onnx(serialized, self.unlabeled[unlabeled_rows], simulate=simulate).argmax(1)
        fp32_N, unlabeled_fp32_N = self.fp32_labels[0][rows], self.fp32_labels[1][unlabeled_rows]
        points, low, high = (
            100 * fraction for fraction in metrics.drop(self.val[1][rows], fp32_N, predicted_N, self.score)
        )
        differ = 100 * float(
            np.mean(np.concatenate([predicted_N != fp32_N, unlabeled_predicted_N != unlabeled_fp32_N]))
        )
        return Drop(
            points=points, low=low, high=high, n=len(rows), differ=differ, images=len(rows) + len(unlabeled_rows)
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
        """The int8 graph of a target with the fewest float layers within the bound; all int8 if there is none.

        Args:
            target: "cpu" or "tensorrt".
            make: builds the graph with the named layers in float.
            qat: a candidate from quantization-aware training; used if it loses no more.
        """
        int8_graph = make(())
        drop = self.drop(int8_graph, target)
        guarded, model, ranges = (
            Guarded(target=target, holds=self.holds(drop), max_drop=self.max_drop, drop=drop),
            self.model,
            self.ranges,
        )
        if qat:
            candidate_drop = self.drop(qat.make(()), target)
            if candidate_drop.points <= drop.points:
                make, int8_graph, model, ranges = qat.make, qat.make(()), qat.model, qat.ranges
                guarded = Guarded(
                    target=target,
                    holds=self.holds(candidate_drop),
                    max_drop=self.max_drop,
                    drop=candidate_drop,
                    before=drop,
                    qat=qat.agreement,
                )
        if guarded.holds:
            return Outcome(graph=int8_graph, guarded=guarded)
        ranked = sensitivity(model, ranges, target, self.images_NHWC)
        worst = list(ranked)[: max(1, len(ranked) // LAYERS_PER_FLOAT_LAYER)]
        counts = _float_counts(len(worst))
        with bar(f"keep layers in float for {target}", len(counts)) as advance:
            for count in counts:
                graph = make(worst[:count])
                hopeless = self.drop(graph, target, screening=True).low > self.max_drop
                advance(1)
                if not hopeless and self.holds(candidate_drop := self.drop(graph, target)):
                    with_floats = replace(
                        guarded, holds=True, drop=candidate_drop, floats=tuple(worst[:count]), before=guarded.drop
                    )
                    return Outcome(graph=graph, guarded=with_floats, sensitivity=ranked)
        return Outcome(graph=int8_graph, guarded=guarded, sensitivity=ranked)


def _float_counts(max_count: int) -> list[int]:
    """Numbers of float layers to try: one more each time, later a third more, up to `max_count`."""
    counts = [1]
    while counts[-1] < max_count:
        counts.append(min(max_count, max(counts[-1] + 1, counts[-1] * 4 // 3)))
    return counts


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """Indices of at most `count` of `n` items, evenly spaced, both ends included; int64."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).astype(np.int64)) if n else np.zeros(0, dtype=np.int64)


def sensitivity(
    model: ModelProto, ranges: Mapping[str, calibrate.Range], target: Target, images_NHWC: np.ndarray
) -> dict[str, float]:
    """Layer -> the noise of the logits with this layer alone in int8; the worst first.

    Noise is the root mean square difference divided by the standard deviation of the float logits.
    """
    prepared = qdq.prepare(model, target)
    plan = make_plan(prepared, target)
    affines = qdq.affines(prepared, plan, ranges)
    ranking_NHWC = images_NHWC[evenly_spaced(len(images_NHWC), RANKING_IMAGES)]
    float_NC = predict_onnx(prepared.SerializeToString(), ranking_NHWC)
    scale, noise = float(float_NC.std()) or 1.0, {}
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
            int8_NC = predict_onnx(
                graphs.without_unread(qdq.quantize_graph(prepared, layer_plan, affines)).SerializeToString(),
                ranking_NHWC,
            )
            noise[name] = float(np.sqrt(np.mean((int8_NC - float_NC) ** 2))) / scale
            advance(1)
    return dict(sorted(noise.items(), key=lambda pair: -pair[1]))
