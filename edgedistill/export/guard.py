"""The accuracy guard: if int8 is shown to lose more accuracy than the recipe allows, sensitive layers stay in float.

Accuracy is compared with fp32's on witnesses: val with its labels, and images without labels that trained nothing, on
which the loss is expected from calibrated probabilities. Layers are ranked on a few other images, by the noise that
each one alone adds to the logits. N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from onnx import ModelProto

from edgedistill.console import bar
from edgedistill.data.splits import evenly_spaced
from edgedistill.export import calibrate, graphs, qdq
from edgedistill.export.float_layers import FloatSet, Ratio, fastest, holding_sets
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import layers, make_plan
from edgedistill.labels.calibration import LARGEST_ERROR, Temperature, estimated_loss, temperature_of
from edgedistill.records import Drop, Guarded, Target

RANKING_IMAGES = 32  # images on which layers are ranked
TRAINED = -2  # in place of a label: none is used, and the image trained
UNLABELED_IMAGES = 256  # calibration images on which labels are compared with fp32's
SCREENING_IMAGES = 64  # witnesses that decide whether a graph is run on all of them
SIMULATED_IMAGES = 500  # witnesses for a graph that can only be simulated, which takes seven times as long


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Witnesses:
    """Images on which an int8 graph is compared with fp32; as far as possible they did not train.

    Attributes:
        images_NHWC: uint8 [N, px, px, 3].
        labels_N: their labels, -1 for none, TRAINED for an image that trained.
        units_N: the group or set of copies of each; None where each is alone.
        temperature: of the fp32 graph's logits; None to fit it on those with a label.
    """

    images_NHWC: np.ndarray
    labels_N: np.ndarray
    units_N: np.ndarray | None = None
    temperature: Temperature | None = None


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The fp32 graph, images and bound with which int8 graphs are compared.

    Attributes:
        model: the fp32 graph.
        ranges: its calibrated ranges.
        calibration_NHWC: the calibration images.
        witnesses: the images of the comparison.
        max_drop: percentage points of accuracy that may be lost.
        score: "top1" or "balanced".
    """

    model: ModelProto
    ranges: Mapping[str, calibrate.Range]
    calibration_NHWC: np.ndarray
    witnesses: Witnesses
    max_drop: float
    score: str

    @cached_property
    def unlabeled_NHWC(self) -> np.ndarray:  # noqa: N802 - the shape suffix
        """The calibration images on which labels are compared, at most UNLABELED_IMAGES."""
        every = max(1, len(self.calibration_NHWC) // UNLABELED_IMAGES)
        return self.calibration_NHWC[::every][:UNLABELED_IMAGES]

    @cached_property
    def fp32_logits(self) -> tuple[np.ndarray, np.ndarray]:
        """fp32's logits on the witnesses and on the unlabeled images."""
        graph = self.model.SerializeToString()
        return predict_onnx(graph, self.witnesses.images_NHWC), predict_onnx(graph, self.unlabeled_NHWC)

    @cached_property
    def fitted_temperature(self) -> Temperature:
        """The temperature of fp32's logits."""
        if self.witnesses.temperature is not None:
            return self.witnesses.temperature
        labeled_N = self.witnesses.labels_N >= 0
        if not labeled_N.any():  # val may be empty
            return Temperature(value=1.0, log_error=LARGEST_ERROR)
        return temperature_of(self.fp32_logits[0][labeled_N], self.witnesses.labels_N[labeled_N])

    def measure_drop(self, graph: ModelProto, target: Target, screening: bool = False) -> Drop:
        """Measure the accuracy that an int8 graph loses; with `screening`, on SCREENING_IMAGES witnesses only.

        A simulated graph is run on at most SIMULATED_IMAGES witnesses.
        """
        serialized, simulate, witnesses = graph.SerializeToString(), target != "cpu", self.witnesses
        max_witnesses, max_unlabeled = len(witnesses.images_NHWC), len(self.unlabeled_NHWC)
        if simulate or screening:
            max_witnesses = SCREENING_IMAGES if screening else SIMULATED_IMAGES
            max_unlabeled = max_witnesses // 4
        rows = evenly_spaced(len(witnesses.images_NHWC), max_witnesses)
        unlabeled_rows = evenly_spaced(len(self.unlabeled_NHWC), max_unlabeled)
        int8_NC = predict_onnx(serialized, self.witnesses.images_NHWC[rows], simulate=simulate)
        unlabeled_int8_N = predict_onnx(serialized, self.unlabeled_NHWC[unlabeled_rows], simulate=simulate).argmax(1)
        fp32_NC, unlabeled_fp32_N = self.fp32_logits[0][rows], self.fp32_logits[1][unlabeled_rows].argmax(1)
        loss = estimated_loss(
            witnesses.labels_N[rows],
            fp32_NC,
            int8_NC,
            self.fitted_temperature,
            by=self.score,
            units_N=None if witnesses.units_N is None else witnesses.units_N[rows],
        )
        low, high = loss.interval
        differ_N = np.concatenate([int8_NC.argmax(1) != fp32_NC.argmax(1), unlabeled_int8_N != unlabeled_fp32_N])
        return Drop(
            points=100 * loss.mean,
            low=100 * low,
            high=100 * high,
            n=len(rows),
            differ=100 * float(np.mean(differ_N)),
            images=len(rows) + len(unlabeled_rows),
            unlabeled=int((witnesses.labels_N[rows] < 0).sum()),
            trained=int((witnesses.labels_N[rows] == TRAINED).sum()),
            shown=100 * loss.shown,
        )

    def within(self, drop: Drop) -> bool:
        """Whether the estimated loss is within the bound, or explained by one of few images.

        The second case: one image is more than the bound, one was lost, and the share of labels that changed on all
        images is within the bound.
        """
        one_image = self.score == "top1" and drop.points <= 100 / drop.n
        return drop.points <= self.max_drop or (one_image and drop.differ <= self.max_drop)

    def holds(self, drop: Drop) -> bool:
        """Whether no loss above the bound is shown.

        Both errors cost: a layer in float for nothing costs speed, and a loss that is overlooked costs accuracy. A loss
        is shown with a certainty of 90 %: with the estimate alone, chance would put layers into float in half of the
        cases at the bound; with the usual 97.5 %, few images would show no loss whatever.
        """
        return self.within(drop) or drop.least <= self.max_drop

    def choose_graph(
        self,
        target: Target,
        make: Callable[[Sequence[str]], ModelProto],
        qat: QatCandidate | None = None,
        time: Callable[[ModelProto], Ratio | None] | None = None,
    ) -> Outcome:
        """Choose the target's fastest graph within the bound; all int8 if none is, or no loss above it is shown.

        Args:
            target: "cpu" or "tensorrt".
            make: builds the graph with the named layers in float.
            qat: a candidate from quantization-aware training; it replaces the graph of `make` if it loses no more.
            time: measures fp32's time over a graph's, where this machine runs the target.
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
        macs = graphs.layer_macs(qdq.prepare(model, target), ranked)
        sets = holding_sets(ranked, macs, partial(self._hold, target, make))
        if not sets:
            return Outcome(graph=graph, guarded=guarded, sensitivity=ranked)
        if time and len(sets) > 1:
            sets = [replace(holding, ratio=time(holding.graph)) for holding in sets]
        chosen = fastest(sets)
        guarded = replace(
            guarded,
            holds=True,
            drop=chosen.drop,
            floats=tuple(sorted(chosen.layers, key=lambda name: -ranked[name])),
            before=guarded.drop,
            sets=len(sets),
            timed=chosen.ratio is not None and chosen.ratio[0] == max(other.ratio[0] for other in sets if other.ratio),
        )
        return Outcome(graph=chosen.graph, guarded=guarded, sensitivity=ranked)

    def _hold(
        self, target: Target, make: Callable[[Sequence[str]], ModelProto], floats: tuple[str, ...]
    ) -> FloatSet | None:
        """The graph with these layers in float if its estimated loss is within the bound."""
        graph = make(floats)
        if self.measure_drop(graph, target, screening=True).low > self.max_drop:
            return None
        drop = self.measure_drop(graph, target)
        return FloatSet(layers=floats, graph=graph, drop=drop) if self.within(drop) else None


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
            graph = qdq.quantize_graph(prepared, layer_plan, affines)
            int8_NC = predict_onnx(graph.SerializeToString(), ranking_NHWC)
            noise[name] = float(np.sqrt(np.mean((int8_NC - float_NC) ** 2))) / scale
            advance(1)
    return dict(sorted(noise.items(), key=lambda pair: -pair[1]))
