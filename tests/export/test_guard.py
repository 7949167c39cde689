"""The accuracy guard: on a net with one layer that int8 breaks, and on its decisions with answers made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from edgedistill.export import calibrate, graphs, guard, qdq, quantize
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import layers, plan
from edgedistill.recipe.schema import Quantize
from edgedistill.records import Drop, Target
from tests.helpers.export_nets import Exported, pictures
from tests.helpers.small_graphs import chain

TARGETS: tuple[Target, ...] = ("cpu", "tensorrt")
BROKEN = 6  # of the layers of the residual net: the one that reads a channel a thousand times as large as the others


def put(model: ModelProto, name: str, array: np.ndarray) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))


@pytest.fixture(scope="module")
def broken(exported: Callable[[str], Exported]) -> ModelProto:
    """The residual net, computing the same but for sums, with a channel between two convolutions that dwarfs the rest.

    A step for that channel is a step for all, and leaves nothing of the others.
    """
    model = onnx.load(exported("resnet").path)
    known, nodes = graphs.constants(model), {node.name: node for node in model.graph.node}
    first, second = (nodes[layers(model)[at]] for at in (BROKEN - 1, BROKEN))
    up, down = np.ones(len(known[first.input[2]])), np.ones(len(known[first.input[2]]))
    up[0], down[0] = 1000, 1 / 1000
    put(model, first.input[1], known[first.input[1]] * up.reshape(-1, 1, 1, 1))
    put(model, first.input[2], known[first.input[2]] * up)
    put(model, second.input[1], known[second.input[1]] * down.reshape(1, -1, 1, 1))
    # random weights like one class best whatever they see; labels that all differ make a guard that can see
    head = nodes[layers(model)[-1]]
    logits = predict_onnx(model.SerializeToString(), pictures(64, seed=8))
    put(model, head.input[1], known[head.input[1]] / logits.std(0).reshape(-1, 1))
    put(model, head.input[2], (known[head.input[2]] - logits.mean(0)) / logits.std(0))
    return model


def guarding(model: ModelProto, max_drop: float) -> guard.Guard:
    images, unseen = pictures(24), pictures(64, seed=8)
    found = quantize.calibrated(model, images, Quantize(calibration_images=24, method="minmax"))
    labels = predict_onnx(model.SerializeToString(), unseen).argmax(1)
    assert len(np.unique(labels)) == 5
    return guard.Guard(
        model=model, ranges=found.ranges, images_NHWC=images, val=(unseen, labels), max_drop=max_drop, score="top1"
    )


def makes(one: guard.Guard, target: Target) -> Callable[[Sequence[str]], ModelProto]:
    return quantize.maker(one.model, one.ranges, target)


@pytest.mark.parametrize("target", TARGETS)
def test_the_layer_that_int8_breaks_stays_float_and_the_bound_holds(broken: ModelProto, target: Target) -> None:
    one, worst = guarding(broken, 12.0), layers(broken)[BROKEN]
    outcome = one.hold(target, makes(one, target))
    said, ranked = outcome.guarded, list(outcome.sensitivity.items())
    assert (said.target, said.holds, said.max_drop, said.floats) == (target, True, 12.0, (worst,))
    assert ranked[0][0] == worst
    assert ranked[0][1] > 10 * ranked[1][1]
    assert ranked == sorted(ranked, key=lambda pair: -pair[1])
    assert {name for name, _ in ranked} == set(layers(broken))
    # without it most labels are others; with it they are the 64 + 24 images' own, but for a few
    assert said.before is not None
    assert said.before.points > 40
    assert said.drop.points <= 12
    assert (said.drop.n, said.drop.images) == (64, 88)
    assert outcome.graph == makes(one, target)([worst])
    assert worst not in plan(qdq.prepared(broken, target), target, said.floats).weights


@pytest.mark.parametrize("target", TARGETS)
def test_a_bound_that_holds_leaves_everything_in_int8_and_ranks_nothing(broken: ModelProto, target: Target) -> None:
    one = guarding(broken, 100.0)
    outcome = one.hold(target, makes(one, target))
    assert (outcome.guarded.holds, outcome.guarded.floats, outcome.guarded.before) == (True, (), None)
    assert outcome.sensitivity == {}
    assert outcome.graph == makes(one, target)(())


def test_sensitivity_is_the_noise_of_one_layer_alone(broken: ModelProto) -> None:
    """By hand for the last layer: its input is rounded to 255 steps, its weights to 127 and nothing else."""
    one = guarding(broken, 1.0)
    noise = guard.sensitivity(broken, one.ranges, "cpu", one.images_NHWC)
    known, head = graphs.constants(broken), broken.graph.node[-1]
    (seen,) = calibrate.collect(broken, one.images_NHWC, [head.input[0]]).values()
    x_NF = seen.values.reshape(len(one.images_NHWC), -1).astype(np.float64)
    step, (weight, bias) = seen.high / 255, (known[name].astype(np.float64) for name in head.input[1:])
    steps = np.abs(weight).max(1, keepdims=True) / 127
    got = np.rint(x_NF / step) * step @ (np.rint(weight / steps) * steps).T + bias
    wanted = x_NF @ weight.T + bias
    assert seen.low >= 0
    assert noise[head.name] == pytest.approx(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std(), rel=0.05)


IMAGES = pictures(10, px=8)


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[guard.Outcome, list[list[str]]]]:
    """A guard over a chain of eight layers, whose drops are given by the number of layers in float."""
    model = chain(*["Conv"] * 8)
    names = [f"Conv{at}" for at in (3, 5, 0, 1, 2, 4, 6, 7)]

    def go(drops: list[Drop], max_drop: float) -> tuple[guard.Outcome, list[list[str]]]:
        asked: list[list[str]] = []

        def make(floats: Sequence[str]) -> ModelProto:
            asked.append(list(floats))
            graph = ModelProto()
            graph.CopyFrom(model)
            graph.doc_string = str(len(floats))
            return graph

        monkeypatch.setattr(guard.Guard, "drop", lambda _, graph, target, first=False: drops[int(graph.doc_string)])
        monkeypatch.setattr(guard, "sensitivity", lambda *_: {name: 1.0 - at / 8 for at, name in enumerate(names)})
        one = guard.Guard(
            model=model, ranges={}, images_NHWC=IMAGES, val=(IMAGES, np.zeros(10, int)), max_drop=max_drop, score="top1"
        )
        return one.hold("cpu", make), asked

    return go


def losing(points: float, differ: float = 50.0) -> Drop:
    return Drop(points=points, low=points - 1, high=points + 1, n=100, differ=differ, images=200)


Decide = Callable[..., tuple[guard.Outcome, list[list[str]]]]


def test_layers_are_added_worst_first_until_the_bound_is_kept(decide: Decide) -> None:
    outcome, asked = decide([losing(9), losing(5), losing(1)], 1.0)
    assert asked == [[], ["Conv3"], ["Conv3", "Conv5"]]
    assert (outcome.guarded.holds, outcome.guarded.floats) == (True, ("Conv3", "Conv5"))
    assert (outcome.guarded.drop, outcome.guarded.before) == (losing(1), losing(9))
    assert outcome.graph.doc_string == "2"


def test_where_a_quarter_of_the_layers_is_not_enough_the_plain_graph_comes_back(decide: Decide) -> None:
    outcome, asked = decide([losing(9), losing(5), losing(1.1), losing(0)], 1.0)
    # two of eight layers, and the third that would have been enough is not asked for
    assert [len(one) for one in asked] == [0, 1, 2]
    assert (outcome.guarded.holds, outcome.guarded.floats, outcome.guarded.before) == (False, (), None)
    assert outcome.guarded.drop == losing(9)
    assert outcome.graph.doc_string == "0"
    assert list(outcome.sensitivity)[:2] == ["Conv3", "Conv5"]


@pytest.mark.parametrize(
    ("points", "differ", "holds"),
    # of the hundred images one is 1.0 point; two lost ones are not explained away
    [
        (0.5, 50.0, True),
        (0.51, 50.0, False),
        (-3.0, 50.0, True),
        (1.0, 0.5, True),
        (1.0, 0.51, False),
        (2.0, 0.5, False),
    ],
)
def test_points_or_labels_must_be_within_the_bound(decide: Decide, points: float, differ: float, holds: bool) -> None:
    outcome, _ = decide([losing(points, differ)] * 3, 0.5)
    assert outcome.guarded.holds == holds


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[np.ndarray, np.ndarray], None]:
    """fp32 answers 0 to all images; an int8 graph answers as given, for val and for the calibration images."""

    def give(val: np.ndarray, others: np.ndarray) -> None:
        def predict(graph: bytes, images_NHWC: np.ndarray, *, simulate: bool = False) -> np.ndarray:
            at = images_NHWC[:, 0, 0, 0].astype(int)
            kind = images_NHWC[0, 0, 0, 1]
            labels = (val, others)[kind][at] if graph == b"int8" else np.zeros(len(at), int)
            return np.eye(3)[labels]

        monkeypatch.setattr(guard, "predict_onnx", predict)

    return give


class Named:
    """Something with bytes."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self.name


def numbered(n: int, kind: int) -> np.ndarray:
    images = np.zeros((n, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(n), kind
    return images


def test_of_few_val_images_one_flip_is_more_than_the_bound_and_holds(
    answers: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    """One of ten of val is lost, ten points; one of 210 images has another label, half a point."""
    others = np.zeros(200, int)
    answers(np.array([1] + [0] * 9), others)
    val = numbered(10, 0), np.zeros(10, int)
    one = guard.Guard(
        model=Named(b"fp32"), ranges={}, images_NHWC=numbered(200, 1), val=val, max_drop=1.0, score="top1"
    )
    drop = one.drop(Named(b"int8"), "cpu")
    assert (drop.points, drop.n, drop.images) == (pytest.approx(10.0), 10, 210)
    assert drop.differ == pytest.approx(100 / 210)
    # (1 + 0) / 12 and sqrt(1 + 1 - 1 / 12) / 12
    assert (drop.low, drop.high) == pytest.approx((100 * (1 / 12 - 0.226124), 100 * (1 / 12 + 0.226124)), abs=1e-3)
    assert one.holds(drop)
    others[:2] = 2
    drop = one.drop(Named(b"int8"), "cpu")
    assert drop.differ == pytest.approx(300 / 210)
    assert not one.holds(drop)


def test_a_graph_that_is_simulated_is_asked_about_fewer_images(
    answers: Callable[[np.ndarray, np.ndarray], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "SIMULATED", 40)
    answers(np.zeros(100, int), np.zeros(100, int))
    one = guard.Guard(
        model=Named(b"fp32"),
        ranges={},
        images_NHWC=numbered(100, 1),
        val=(numbered(100, 0), np.zeros(100, int)),
        max_drop=1.0,
        score="top1",
    )
    assert [(drop.n, drop.images) for drop in (one.drop(Named(b"int8"), target) for target in TARGETS)] == [
        (100, 200),
        (40, 50),
    ]


def test_the_images_looked_at_are_spread_over_all() -> None:
    np.testing.assert_array_equal(guard._spread(10, 4), [0, 3, 6, 9])
    np.testing.assert_array_equal(guard._spread(3, 5), [0, 1, 2])
    assert len(guard._spread(0, 5)) == 0
