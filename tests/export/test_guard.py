"""The accuracy guard: on a net with one layer that int8 breaks, and its decisions on handmade labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from edgedistill.export import calibrate, graphs, guard, qdq, quantize
from edgedistill.export.float_layers import FloatSet, Ratio, fastest, holding_sets
from edgedistill.export.infer import predict_onnx
from edgedistill.export.placement import layers, make_plan
from edgedistill.labels.calibration import LARGEST_ERROR, Temperature, temperature_of
from edgedistill.recipe.schema import Quantize
from edgedistill.records import Drop, Target
from tests.helpers.export_nets import Exported, pictures
from tests.helpers.small_graphs import chain

TARGETS: tuple[Target, ...] = ("cpu", "tensorrt")
BROKEN = 6  # index of the residual net's layer that reads a channel a thousand times as large as the others


def set_constant(model: ModelProto, name: str, array: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))


@pytest.fixture(scope="module")
def broken(exported: Callable[[str], Exported]) -> ModelProto:
    """Return the residual net with one channel between two convolutions scaled up and scaled down again.

    Outputs stay the same except for rounding of sums. All channels share one step, so the large channel leaves
    nothing of the others.
    """
    model = onnx.load(exported("resnet").path)
    constants, nodes = graphs.constants(model), {node.name: node for node in model.graph.node}
    first, second = (nodes[layers(model)[index]] for index in (BROKEN - 1, BROKEN))
    scale_up, scale_down = np.ones(len(constants[first.input[2]])), np.ones(len(constants[first.input[2]]))
    scale_up[0], scale_down[0] = 1000, 1 / 1000
    set_constant(model, first.input[1], constants[first.input[1]] * scale_up.reshape(-1, 1, 1, 1))
    set_constant(model, first.input[2], constants[first.input[2]] * scale_up)
    set_constant(model, second.input[1], constants[second.input[1]] * scale_down.reshape(1, -1, 1, 1))
    # random weights predict one class for every image; normalized logits give all labels, so that drops are visible
    head = nodes[layers(model)[-1]]
    logits = predict_onnx(model.SerializeToString(), pictures(64, seed=8))
    set_constant(model, head.input[1], constants[head.input[1]] / logits.std(0).reshape(-1, 1))
    set_constant(model, head.input[2], (constants[head.input[2]] - logits.mean(0)) / logits.std(0))
    return model


NOISE = {"early": 9.0, "wide": 8.0, "late": 3.0, **{f"other{index}": 1.0 for index in range(9)}}
MACS = {"early": 5.0, "wide": 100.0, "late": 1.0, **{f"other{index}": 20.0 for index in range(9)}}
GRAPH = ModelProto()


def sets_held(*enough: set[str]) -> list[tuple[str, ...]]:
    """The sets chosen where the bound holds with any superset of one in `enough`."""

    def hold(floats: tuple[str, ...]) -> FloatSet | None:
        if any(layers_needed <= set(floats) for layers_needed in enough):
            return FloatSet(layers=floats, graph=GRAPH, drop=losing(0))
        return None

    return [holding.layers for holding in holding_sets(NOISE, MACS, hold)]


def test_sets_are_sought_by_noise_and_by_noise_for_each_mac() -> None:
    assert sets_held({"early", "wide"}, {"early", "late"}) == [("late", "early"), ("early", "wide")]


def test_layers_that_are_not_needed_are_spared() -> None:
    assert sets_held({"late"}) == [("late",)]
    assert sets_held({"early", "wide", "other5"}) == []


def test_fastest_set_is_taken_and_the_cheapest_where_nothing_is_shown() -> None:
    cheap, costly = (FloatSet(layers=(name,), graph=GRAPH, drop=losing(0)) for name in ("late", "wide"))

    def chosen(cheap_ratio: Ratio | None, costly_ratio: Ratio | None) -> str:
        timed = fastest([replace(cheap, ratio=cheap_ratio), replace(costly, ratio=costly_ratio)])
        return timed.layers[0]

    assert chosen(None, None) == "late"
    assert chosen((1.5, 1.4, 1.6), (1.8, 1.7, 1.9)) == "wide"
    assert chosen((1.5, 1.4, 1.6), (1.6, 1.45, 1.7)) == "late", "the interval does not tell them apart"


def test_macs_of_layers(broken: ModelProto) -> None:
    macs = graphs.layer_macs(broken, layers(broken))
    constants = graphs.constants(broken)
    nodes = {node.name: node for node in broken.graph.node}
    head, first = layers(broken)[-1], layers(broken)[0]
    assert set(macs) == set(layers(broken))
    assert macs[head] == constants[nodes[head].input[1]].size
    assert macs[first] % constants[nodes[first].input[1]].size == 0 and macs[first] > macs[head]


def guarding(model: ModelProto, max_drop: float) -> guard.Guard:
    images, unseen = pictures(24), pictures(64, seed=8)
    calibration = quantize.choose_ranges(model, images, Quantize(calibration_images=24, method="minmax"))
    labels = predict_onnx(model.SerializeToString(), unseen).argmax(1)
    assert len(np.unique(labels)) == 5
    return guard.Guard(
        model=model,
        ranges=calibration.ranges,
        calibration_NHWC=images,
        witnesses=guard.Witnesses(images_NHWC=unseen, labels_N=labels),
        max_drop=max_drop,
        score="top1",
    )


def graph_maker(accuracy_guard: guard.Guard, target: Target) -> Callable[[Sequence[str]], ModelProto]:
    return quantize.graph_maker(accuracy_guard.model, accuracy_guard.ranges, target)


@pytest.mark.parametrize("target", TARGETS)
def test_broken_layer_stays_float_and_bound_holds(broken: ModelProto, target: Target) -> None:
    accuracy_guard, worst = guarding(broken, 12.0), layers(broken)[BROKEN]
    outcome = accuracy_guard.choose_graph(target, graph_maker(accuracy_guard, target))
    record, ranked = outcome.guarded, list(outcome.sensitivity.items())
    assert (record.target, record.holds, record.max_drop, record.floats) == (target, True, 12.0, (worst,))
    assert ranked[0][0] == worst
    assert ranked[0][1] > 10 * ranked[1][1]
    assert ranked == sorted(ranked, key=lambda pair: -pair[1])
    assert {name for name, _ in ranked} == set(layers(broken))
    # with that layer in int8 most labels change; with it in float few of the 64 + 24 labels change
    assert record.before is not None
    assert record.before.points > 40
    assert record.drop.points <= 12
    assert (record.drop.n, record.drop.images) == (64, 88)
    assert outcome.graph == graph_maker(accuracy_guard, target)([worst])
    assert worst not in make_plan(qdq.prepare(broken, target), target, record.floats).weights


@pytest.mark.parametrize("target", TARGETS)
def test_satisfied_bound_keeps_all_layers_in_int8_without_ranking(broken: ModelProto, target: Target) -> None:
    accuracy_guard = guarding(broken, 100.0)
    outcome = accuracy_guard.choose_graph(target, graph_maker(accuracy_guard, target))
    assert (outcome.guarded.holds, outcome.guarded.floats, outcome.guarded.before) == (True, (), None)
    assert outcome.sensitivity == {}
    assert outcome.graph == graph_maker(accuracy_guard, target)(())


def test_sensitivity_is_noise_of_one_quantized_layer(broken: ModelProto) -> None:
    """Compare with a hand calculation for the last layer: 255 steps for its input, 127 for its weights."""
    accuracy_guard = guarding(broken, 1.0)
    noise = guard.sensitivity(broken, accuracy_guard.ranges, "cpu", accuracy_guard.calibration_NHWC)
    constants, head = graphs.constants(broken), broken.graph.node[-1]
    (samples,) = calibrate.collect(broken, accuracy_guard.calibration_NHWC, [head.input[0]]).values()
    x_NF = samples.values.reshape(len(accuracy_guard.calibration_NHWC), -1).astype(np.float64)
    step, (weight, bias) = samples.high / 255, (constants[name].astype(np.float64) for name in head.input[1:])
    steps = np.abs(weight).max(1, keepdims=True) / 127
    actual = np.rint(x_NF / step) * step @ (np.rint(weight / steps) * steps).T + bias
    expected = x_NF @ weight.T + bias
    assert samples.low >= 0
    assert noise[head.name] == pytest.approx(np.sqrt(np.mean((actual - expected) ** 2)) / expected.std(), rel=0.05)


IMAGES = pictures(10, px=8)


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[guard.Outcome, list[list[str]]]]:
    """Return a guard run over a chain of eight layers; its drops are set by the number of layers in float."""
    model = chain(*["Conv"] * 8)
    names = [f"Conv{index}" for index in (3, 5, 0, 1, 2, 4, 6, 7)]

    def hold(
        drops: list[Drop], max_drop: float, time: Callable[[ModelProto], Ratio | None] | None = None
    ) -> tuple[guard.Outcome, list[list[str]]]:
        floats_per_call: list[list[str]] = []

        def make(floats: Sequence[str]) -> ModelProto:
            floats_per_call.append(list(floats))
            graph = ModelProto()
            graph.CopyFrom(model)
            graph.doc_string = str(len(floats))
            return graph

        monkeypatch.setattr(
            guard.Guard, "measure_drop", lambda _, graph, target, screening=False: drops[int(graph.doc_string)]
        )
        monkeypatch.setattr(guard, "sensitivity", lambda *_: {name: 1.0 - rank / 8 for rank, name in enumerate(names)})
        accuracy_guard = guard.Guard(
            model=model,
            ranges={},
            calibration_NHWC=IMAGES,
            witnesses=guard.Witnesses(images_NHWC=IMAGES, labels_N=np.zeros(10, int)),
            max_drop=max_drop,
            score="top1",
        )
        return accuracy_guard.choose_graph("cpu", make, time=time), floats_per_call

    return hold


def losing(points: float, differ: float = 50.0, shown: float | None = None) -> Drop:
    """A loss that is shown to the full, unless `shown` says otherwise."""
    shown = points if shown is None else shown
    return Drop(points=points, low=points - 1, high=points + 1, n=100, differ=differ, images=200, shown=shown)


Decide = Callable[..., tuple[guard.Outcome, list[list[str]]]]


def test_layers_are_kept_in_float_worst_first_until_bound_holds(decide: Decide) -> None:
    outcome, floats_per_call = decide([losing(9), losing(5), losing(1)], 1.0)
    assert floats_per_call[:3] == [[], ["Conv3"], ["Conv3", "Conv5"]]
    assert (outcome.guarded.holds, outcome.guarded.floats) == (True, ("Conv3", "Conv5"))
    assert (outcome.guarded.drop, outcome.guarded.before) == (losing(1), losing(9))
    assert outcome.graph.doc_string == "2"


def test_plain_graph_is_returned_when_quarter_of_layers_is_not_enough(decide: Decide) -> None:
    outcome, floats_per_call = decide([losing(9), losing(5), losing(1.1), losing(0)], 1.0)
    # two of eight layers; the third, which would have been enough, is not tried
    assert {len(floats) for floats in floats_per_call} == {0, 1, 2}
    assert (outcome.guarded.holds, outcome.guarded.floats, outcome.guarded.before) == (False, (), None)
    assert outcome.guarded.drop == losing(9)
    assert outcome.graph.doc_string == "0"
    assert list(outcome.sensitivity)[:2] == ["Conv3", "Conv5"]


@pytest.mark.parametrize("is_timed", [True, False])
def test_fastest_of_several_sets_is_kept(decide: Decide, monkeypatch: pytest.MonkeyPatch, is_timed: bool) -> None:
    def sets(noise: dict[str, float], macs: dict[str, float], hold: Callable[..., FloatSet]) -> list[FloatSet]:
        return [hold(("Conv0",)), hold(("Conv0", "Conv3"))]

    monkeypatch.setattr(guard, "holding_sets", sets)
    speeds: dict[str, Ratio] = {"1": (1.2, 1.1, 1.3), "2": (1.9, 1.8, 2.0)}
    time = (lambda graph: speeds[graph.doc_string]) if is_timed else None
    outcome, _ = decide([losing(9), losing(1), losing(0)], 1.0, time)
    assert outcome.guarded.floats == (("Conv3", "Conv0") if is_timed else ("Conv0",))
    assert (outcome.guarded.sets, outcome.guarded.timed) == (2, is_timed)
    assert outcome.graph.doc_string == ("2" if is_timed else "1")


@pytest.mark.parametrize(("shown", "floats"), [(0.9, ()), (1.0, ()), (1.1, ("Conv3",))])
def test_layer_goes_to_float_only_for_loss_that_is_shown(decide: Decide, shown: float, floats: tuple[str, ...]) -> None:
    outcome, _ = decide([losing(2, shown=shown), losing(1)], 1.0)
    assert (outcome.guarded.holds, outcome.guarded.floats) == (True, floats)
    assert outcome.guarded.drop.points == (1 if floats else 2)


def test_estimate_with_layers_in_float_must_be_within_bound(decide: Decide) -> None:
    outcome, _ = decide([losing(9), losing(1.5, shown=0), losing(1.2, shown=0)], 1.0)
    assert not outcome.guarded.holds and outcome.guarded.floats == ()


@pytest.mark.parametrize(
    ("points", "differ", "holds"),
    # one of a hundred images is 1.0 point; two lost images exceed the bound however few labels differ
    [
        (0.5, 50.0, True),
        (0.51, 50.0, False),
        (-3.0, 50.0, True),
        (1.0, 0.5, True),
        (1.0, 0.51, False),
        (2.0, 0.5, False),
    ],
)
def test_points_or_labels_must_be_within_bound(decide: Decide, points: float, differ: float, holds: bool) -> None:
    outcome, _ = decide([losing(points, differ)] * 3, 0.5)
    assert outcome.guarded.holds == holds


@pytest.fixture
def set_labels(monkeypatch: pytest.MonkeyPatch) -> Callable[[np.ndarray, np.ndarray], None]:
    """Set an int8 graph's labels on val and on the calibration images; fp32 predicts 0 on all of them."""

    def install(val_labels: np.ndarray, calibration_labels: np.ndarray) -> None:
        def predict(graph: bytes, images_NHWC: np.ndarray, *, simulate: bool = False) -> np.ndarray:
            indices_N = images_NHWC[:, 0, 0, 0].astype(int)
            kind = images_NHWC[0, 0, 0, 1]
            labels = (
                (val_labels, calibration_labels)[kind][indices_N] if graph == b"int8" else np.zeros(len(indices_N), int)
            )
            return np.eye(3)[labels]

        monkeypatch.setattr(guard, "predict_onnx", predict)

    return install


class FakeGraph:
    """Stand-in for a graph, serialized to its name."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self.name


def numbered(n: int, kind: int) -> np.ndarray:
    images = np.zeros((n, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(n), kind
    return images


def test_bound_holds_when_one_of_few_val_labels_flips(
    set_labels: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    """One of ten val labels is lost, which is ten points; one of 210 labels differs, which is half a point."""
    calibration_labels = np.zeros(200, int)
    set_labels(np.array([1] + [0] * 9), calibration_labels)
    accuracy_guard = guard.Guard(
        model=FakeGraph(b"fp32"),
        ranges={},
        calibration_NHWC=numbered(200, 1),
        witnesses=guard.Witnesses(images_NHWC=numbered(10, 0), labels_N=np.zeros(10, int)),
        max_drop=1.0,
        score="top1",
    )
    drop = accuracy_guard.measure_drop(FakeGraph(b"int8"), "cpu")
    assert (drop.points, drop.n, drop.images) == (pytest.approx(10.0), 10, 210)
    assert drop.differ == pytest.approx(100 / 210)
    # (1 + 0) / 12 and sqrt(1 + 1 - 1 / 12) / 12
    assert (drop.low, drop.high) == pytest.approx((100 * (1 / 12 - 0.226124), 100 * (1 / 12 + 0.226124)), abs=1e-3)
    assert accuracy_guard.within(drop)
    calibration_labels[:2] = 2
    drop = accuracy_guard.measure_drop(FakeGraph(b"int8"), "cpu")
    assert drop.differ == pytest.approx(300 / 210)
    assert not accuracy_guard.within(drop)
    assert accuracy_guard.holds(drop), "one image of ten shows nothing"


def test_witnesses_without_a_label_are_judged_by_calibrated_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images of val, one lost; ninety others, of which int8 answers nine otherwise at 60 to 40 %."""
    logits = {b"fp32": np.zeros((100, 2)), b"int8": np.zeros((100, 2))}
    logits[b"fp32"][:, 0] = 2 * np.log(0.6 / 0.4)  # honest at a temperature of 2
    logits[b"int8"][[0, *range(20, 29)], 1] = 9.0

    def predict(graph: bytes, images_NHWC: np.ndarray, *, simulate: bool = False) -> np.ndarray:
        return logits[graph][images_NHWC[:, 0, 0, 0]]

    monkeypatch.setattr(guard, "predict_onnx", predict)
    accuracy_guard = guard.Guard(
        model=FakeGraph(b"fp32"),
        ranges={},
        calibration_NHWC=numbered(1, 1),
        witnesses=guard.Witnesses(
            images_NHWC=numbered(100, 0),
            labels_N=np.array([0] * 10 + [-1] * 70 + [guard.TRAINED] * 20),
            temperature=Temperature(value=2.0),
        ),
        max_drop=1.0,
        score="top1",
    )
    drop = accuracy_guard.measure_drop(FakeGraph(b"int8"), "cpu")
    assert (drop.n, drop.unlabeled, drop.trained) == (100, 90, 20)
    assert drop.points == pytest.approx(1 + 9 * 0.2)
    assert drop.low < 0 < drop.shown < drop.points < drop.high
    units_N = np.arange(100)
    units_N[20:29] = 20  # the images that are expected to lose are frames of one recording
    in_groups = replace(accuracy_guard, witnesses=replace(accuracy_guard.witnesses, units_N=units_N))
    grouped = in_groups.measure_drop(FakeGraph(b"int8"), "cpu")
    assert grouped.points == drop.points and grouped.low < drop.low - 1 and grouped.shown < drop.shown


def test_temperature_is_fitted_on_the_labels(set_labels: Callable[[np.ndarray, np.ndarray], None]) -> None:
    set_labels(np.zeros(100, int), np.zeros(1, int))
    accuracy_guard = guard.Guard(
        model=FakeGraph(b"fp32"),
        ranges={},
        calibration_NHWC=numbered(1, 1),
        witnesses=guard.Witnesses(images_NHWC=numbered(100, 0), labels_N=np.repeat([0, 1, -1], [30, 10, 60])),
        max_drop=1.0,
        score="top1",
    )
    assert accuracy_guard.fitted_temperature == temperature_of(np.eye(3)[np.zeros(40, int)], np.arange(40) // 30)
    accuracy_guard.witnesses.labels_N[:] = -1  # val may be empty
    assert replace(accuracy_guard).fitted_temperature == Temperature(value=1.0, log_error=LARGEST_ERROR)


def test_simulated_graph_is_run_on_fewer_images(
    set_labels: Callable[[np.ndarray, np.ndarray], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "SIMULATED_IMAGES", 40)
    set_labels(np.zeros(100, int), np.zeros(100, int))
    accuracy_guard = guard.Guard(
        model=FakeGraph(b"fp32"),
        ranges={},
        calibration_NHWC=numbered(100, 1),
        witnesses=guard.Witnesses(images_NHWC=numbered(100, 0), labels_N=np.zeros(100, int)),
        max_drop=1.0,
        score="top1",
    )
    assert [
        (drop.n, drop.images)
        for drop in (accuracy_guard.measure_drop(FakeGraph(b"int8"), target) for target in TARGETS)
    ] == [
        (100, 200),
        (40, 50),
    ]
