"""The accuracy guard: int8 loses at most so many points, or its worst layers stay float until it does.

Layers are ranked on few images and without labels, by what each alone does to the logits; whether the bound is kept is
decided on val. N images, C classes.
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
from edgedistill.export.placement import layers, plan
from edgedistill.records import Drop, Guarded, Target

RANKED_ON = 32  # images that a layer is ranked on
DIFFER_ON = 256  # calibration images on which labels are held against fp32's
FIRST = 64  # images of val that decide whether a graph is worth asking about all
SIMULATED = 500  # images of val for a graph that can only be simulated
MOST = 4  # at most one layer in so many stays float: with more, fp32 is the better graph


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A float graph and ranges out of quantization-aware training.

    `make` makes the int8 graph of them, with the named layers left float; `agreement` is that graph's share of the
    labels of the net that was trained.
    """

    model: ModelProto
    ranges: Mapping[str, calibrate.Range]
    make: Callable[[Sequence[str]], ModelProto]
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The graph that a target gets, what the guard says of it, and the layers ranked, worst first, where it asked."""

    graph: ModelProto
    guarded: Guarded
    sensitivity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What an int8 graph is held against.

    Attributes:
        model: the fp32 graph.
        ranges: what calibration found for it.
        images_NHWC: the calibration images.
        val: images and their labels.
        max_drop: points that may be lost.
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
        """The calibration images that are looked at again."""
        return self.images_NHWC[:: max(1, len(self.images_NHWC) // DIFFER_ON)][:DIFFER_ON]

    @cached_property
    def wanted(self) -> tuple[np.ndarray, np.ndarray]:
        """fp32's labels on val and on the unlabeled images."""
        graph = self.model.SerializeToString()
        return predict_onnx(graph, self.val[0]).argmax(1), predict_onnx(graph, self.unlabeled).argmax(1)

    def drop(self, graph: ModelProto, target: Target, first: bool = False) -> Drop:
        """What an int8 graph loses, on all images; at `first` on some of them.

        A graph that is simulated is never asked about more than SIMULATED images of val: each takes as long as twenty.
        """
        bytes_, simulate = graph.SerializeToString(), target != "cpu"
        most = FIRST if first else SIMULATED if simulate else max(len(self.val[1]), DIFFER_ON)
        rows = _spread(len(self.val[1]), most)
        few = _spread(len(self.unlabeled), most // 4 if simulate or first else len(self.unlabeled))
        got = predict_onnx(bytes_, self.val[0][rows], simulate=simulate).argmax(1)
        more = predict_onnx(bytes_, self.unlabeled[few], simulate=simulate).argmax(1)
        before, others = self.wanted[0][rows], self.wanted[1][few]
        points, low, high = (100 * value for value in metrics.drop(self.val[1][rows], before, got, self.score))
        differ = 100 * float(np.mean(np.concatenate([got != before, more != others])))
        return Drop(points=points, low=low, high=high, n=len(rows), differ=differ, images=len(rows) + len(few))

    def holds(self, drop: Drop) -> bool:
        """At most the bound is lost on val; or so few labels change on all images that more is not to be believed.

        The second clause is for a val so small that one image is more than the bound, of which one was lost.
        """
        one_image = self.score == "top1" and drop.points <= 100 / drop.n
        return drop.points <= self.max_drop or (one_image and drop.differ <= self.max_drop)

    def hold(
        self, target: Target, make: Callable[[Sequence[str]], ModelProto], trained: Trained | None = None
    ) -> Outcome:
        """The int8 graph of a target with as few layers in float as keep the bound; with none where none do.

        Args:
            target: whose graph.
            make: makes it, with the named layers left float.
            trained: one out of quantization-aware training, taken where it loses less.
        """
        whole = make(())
        drop = self.drop(whole, target)
        plain, model, ranges = (
            Guarded(target=target, holds=self.holds(drop), max_drop=self.max_drop, drop=drop),
            self.model,
            self.ranges,
        )
        if trained:
            found = self.drop(trained.make(()), target)
            if found.points <= drop.points:
                make, whole, model, ranges = trained.make, trained.make(()), trained.model, trained.ranges
                plain = Guarded(
                    target=target,
                    holds=self.holds(found),
                    max_drop=self.max_drop,
                    drop=found,
                    before=drop,
                    qat=trained.agreement,
                )
        if plain.holds:
            return Outcome(graph=whole, guarded=plain)
        ranked = sensitivity(model, ranges, target, self.images_NHWC)
        worst = list(ranked)[: max(1, len(ranked) // MOST)]
        counts = _counts(len(worst))
        with bar(f"keep layers in float for {target}", len(counts)) as shown:
            for count in counts:
                graph = make(worst[:count])
                hopeless = self.drop(graph, target, first=True).low > self.max_drop
                shown(1)
                if not hopeless and self.holds(found := self.drop(graph, target)):
                    kept = replace(plain, holds=True, drop=found, floats=tuple(worst[:count]), before=plain.drop)
                    return Outcome(graph=graph, guarded=kept, sensitivity=ranked)
        return Outcome(graph=whole, guarded=plain, sensitivity=ranked)


def _counts(most: int) -> list[int]:
    """How many layers to try in float: one more each time, from the fifth on a third more."""
    found = [1]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, found[-1] * 4 // 3)))
    return found


def _spread(n: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(np.int64)) if n else np.zeros(0, dtype=np.int64)


def sensitivity(
    model: ModelProto, ranges: Mapping[str, calibrate.Range], target: Target, images_NHWC: np.ndarray
) -> dict[str, float]:
    """Layer -> the noise that it alone, in int8 among floats, puts on the logits; the worst first.

    Noise is the root mean square difference over the standard deviation of the float logits.
    """
    ready = qdq.prepared(model, target)
    wanted = plan(ready, target)
    found = qdq.affines(ready, wanted, ranges)
    images = images_NHWC[_spread(len(images_NHWC), RANKED_ON)]
    plain_NC = predict_onnx(ready.SerializeToString(), images)
    scale, noise = float(plain_NC.std()) or 1.0, {}
    names = [name for name in layers(ready) if name in wanted.weights]
    read = {node.name: node.input[0] for node in ready.graph.node}
    with bar(f"rank {len(names)} layers", len(names)) as shown:
        for name in names:
            one = replace(
                wanted,
                pairs=(read[name],),
                behind=frozenset({(name, read[name])}),
                weights=frozenset({name}),
                absorbed=frozenset(),
            )
            got_NC = predict_onnx(graphs.without_unread(qdq.written(ready, one, found)).SerializeToString(), images)
            noise[name] = float(np.sqrt(np.mean((got_NC - plain_NC) ** 2))) / scale
            shown(1)
    return dict(sorted(noise.items(), key=lambda pair: -pair[1]))
