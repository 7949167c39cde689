"""One calibration, and one int8 graph for each target from its ranges.

ONNX Runtime on a CPU cannot fuse the Q/DQ pairs that TensorRT needs, and the reverse, so each target has its own
placement of the pairs (placement.py); the ranges are shared (calibrate.py). N images, H x W pixels, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from edgedistill.agent import graph_types, metrics
from edgedistill.console import bar
from edgedistill.export import calibrate, float16, graphs, guard, qdq
from edgedistill.export.float_layers import Ratio
from edgedistill.export.infer import check_images, predict_onnx
from edgedistill.export.placement import make_plan
from edgedistill.recipe.schema import Quantize
from edgedistill.records import OnnxModel, Target
from edgedistill.run import artifacts
from edgedistill.run.files import write_json

log = logging.getLogger(__name__)

COMPARISON_IMAGES = 256  # calibration images on which `auto` compares the rules
MIN_AGREEMENT = 0.995  # of an int8 graph with the fake-quantized student that it was written from
Time = Callable[[ModelProto, Target], Ratio | None]
# a graph, its ranges and a target -> a function that builds the int8 graph with the named layers in float
Maker = Callable[[ModelProto, Mapping[str, calibrate.Range], Target], Callable[[Sequence[str]], ModelProto]]
MIN_HALF_OPSET = 19  # before this opset Q/DQ pairs do not support float16


@dataclass(frozen=True, kw_only=True)
class QatGraph:
    """A float graph and its ranges after quantization-aware training for a target.

    `labels_N` are the labels of the fake-quantized net on `images_NHWC`, uint8 [N, px, px, 3]; its int8 graph should
    predict the same.
    """

    model: ModelProto
    ranges: Mapping[str, calibrate.Range]
    images_NHWC: np.ndarray
    labels_N: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The ranges, their rule, and the rules compared by `auto`: {rule: {"agreement", "noise"}}."""

    method: str
    ranges: dict[str, calibrate.Range]
    tried: dict[str, dict[str, float]]


def quantize(
    fp32: Path,
    parent: OnnxModel,
    images_NHWC: np.ndarray,
    settings: Quantize,
    folder: Path,
    witnesses: guard.Witnesses | None = None,
    score: str = "top1",
    tune: Callable[[ModelProto, Mapping[str, calibrate.Range], Target], QatGraph] | None = None,
    half: bool = True,
    time: Time | None = None,
) -> list[OnnxModel]:
    """Calibrate once, and write `student.int8-<target>.onnx` for every target, and `calibration.json`.

    Args:
        fp32: the graph written by `export`.
        parent: its record.
        images_NHWC: uint8 [N, px, px, 3] of train; the first `settings.calibration_images` are used.
        settings: method, number of images, targets, and the bound on the loss of accuracy.
        folder: the folder for the files.
        witnesses: for the accuracy guard, which writes guard.json and sensitivity.json. Without them the graphs are not
            guarded.
        score: "top1" or "balanced", the guard's measure of accuracy.
        tune: continues training for a target, in that target's arithmetic; used if its graph loses no more.
        half: whether float nodes are float16 for TensorRT.
        time: measures fp32's time over that of a target's int8 graph; None for a target that does not run here.

    Returns:
        A record per target, in the order of `settings.targets`; `path` is the bare file name.

    Raises:
        InputError: `images_NHWC` is not uint8 [N, px, px, 3] with N >= 1.
        EdgeDistillError: a range is not finite, or TensorRT would misread the graph.
    """
    check_images(images_NHWC)
    model, used_NHWC = onnx.load(fp32), images_NHWC[: settings.calibration_images]
    calibration = _calibrated(model, used_NHWC, settings, folder)
    large = float16.large_tensors(model, used_NHWC) if half and "tensorrt" in settings.targets else set()
    maker = partial(graph_maker, half=half, large=large)
    makers = {target: maker(model, calibration.ranges, target) for target in settings.targets}
    if witnesses is None or not len(witnesses.labels_N):
        return [write(make(()), parent, target, folder) for target, make in makers.items()]
    accuracy_guard = guard.Guard(
        model=model,
        ranges=calibration.ranges,
        calibration_NHWC=used_NHWC,
        witnesses=witnesses,
        max_drop=settings.max_drop,
        score=score,
    )
    outcomes: dict[Target, guard.Outcome] = {}
    for target, make in makers.items():
        qat = _qat_candidate(tune(model, calibration.ranges, target), target, maker) if tune else None
        outcomes[target] = accuracy_guard.choose_graph(target, make, qat, _timer(time, target))
    _write_guard(outcomes, folder)
    return [write(outcome.graph, parent, target, folder) for target, outcome in outcomes.items()]


def _calibrated(model: ModelProto, images_NHWC: np.ndarray, settings: Quantize, folder: Path) -> Calibration:
    """The ranges, which are also in calibration.json, with what is to be said of the images."""
    warnings = _warnings(len(images_NHWC), settings)
    for warning in warnings:
        log.warning(warning)
    calibration = choose_ranges(model, images_NHWC, settings)
    write_calibration(folder / artifacts.CALIBRATION.name, calibration, images_NHWC, warnings)
    return calibration


def _write_guard(outcomes: Mapping[Target, guard.Outcome], folder: Path) -> None:
    """Write guard.json, and sensitivity.json with the layers that were ranked."""
    write_json(folder / artifacts.GUARD.name, [asdict(outcome.guarded) for outcome in outcomes.values()])
    ranked = {target: outcome.sensitivity for target, outcome in outcomes.items() if outcome.sensitivity}
    write_json(folder / "sensitivity.json", ranked)


def _timer(time: Time | None, target: Target) -> Callable[[ModelProto], Ratio | None] | None:
    return None if time is None else lambda graph: time(graph, target)


def _qat_candidate(tuned: QatGraph, target: Target, maker: Maker) -> guard.QatCandidate:
    """The int8 graph of a trained student, by the same passes, and its agreement with the student's labels in torch."""
    make = maker(tuned.model, tuned.ranges, target)
    agreement = metrics.agreement(int8_logits(make(()), tuned.images_NHWC, target).argmax(axis=1), tuned.labels_N)
    if agreement < MIN_AGREEMENT:
        shares = f"{agreement:.1%} of {len(tuned.labels_N)} images, less than {MIN_AGREEMENT:.1%}"
        log.warning(f"quantize.qat: the int8 graph for {target} agrees with its fake-quantized student on {shares}")
    return guard.QatCandidate(model=tuned.model, ranges=tuned.ranges, make=make, agreement=agreement)


def write_calibration(path: Path, calibration: Calibration, images_NHWC: np.ndarray, warnings: Sequence[str]) -> None:
    """Write calibration.json: the rule, the comparison by `auto`, the ranges, and the sha256 of every image."""
    hashes = [calibrate.image_hash(image) for image in images_NHWC]
    write_json(
        path,
        {
            "method": calibration.method,
            "images": len(images_NHWC),
            "warnings": list(warnings),
            "tried": calibration.tried,
            "ranges": calibration.ranges,
            "sha256": hashes,
        },
    )


def _warnings(n: int, settings: Quantize) -> list[str]:
    if n >= settings.calibration_images:
        return []
    return [f"quantize: calibrated on {n} images of the {settings.calibration_images} asked for; train has no more"]


def choose_ranges(model: ModelProto, images_NHWC: np.ndarray, settings: Quantize) -> Calibration:
    """Compute the ranges of all tensors that a target quantizes; `auto` compares the rules on the first target."""
    # the CPU's graph has every tensor of TensorRT's, and also the gates of hard-swish
    prepared = qdq.prepare(model, "cpu")
    names = {
        name for target in settings.targets for name in make_plan(qdq.prepare(model, target), target).ranged_tensors()
    }
    statistics = calibrate.collect(prepared, images_NHWC, sorted(names))
    if settings.method != "auto":
        return Calibration(method=settings.method, ranges=calibrate.ranges(statistics, settings.method), tried={})
    target = settings.targets[0]
    compared_NHWC = images_NHWC[:: max(1, len(images_NHWC) // COMPARISON_IMAGES)][:COMPARISON_IMAGES]
    float_NC = predict_onnx(model.SerializeToString(), compared_NHWC)
    candidates = {method: calibrate.ranges(statistics, method) for method in calibrate.METHODS}
    tried: dict[str, dict[str, float]] = {}
    with bar("compare calibrations", len(candidates)) as advance:
        for method, ranges in candidates.items():
            tried[method] = closeness(
                float_NC, int8_logits(graph_maker(model, ranges, target)(()), compared_NHWC, target)
            )
            advance(1)
    best = max(tried, key=lambda method: (tried[method]["agreement"], -tried[method]["noise"]))
    return Calibration(method=best, ranges=candidates[best], tried=tried)


def closeness(float_NC: np.ndarray, int8_NC: np.ndarray) -> dict[str, float]:
    """The share of equal labels, and the noise: the root mean square difference divided by the standard deviation."""
    noise = float(np.sqrt(np.mean((int8_NC - float_NC) ** 2)) / (float_NC.std() or 1.0))
    return {"agreement": metrics.agreement(float_NC.argmax(1), int8_NC.argmax(1)), "noise": noise}


def int8_logits(graph: ModelProto, images_NHWC: np.ndarray, target: Target) -> np.ndarray:
    """Compute the logits [N, C] of an int8 graph as its target does; simulated unless the target is a CPU."""
    return predict_onnx(graph.SerializeToString(), images_NHWC, simulate=target != "cpu")


def graph_maker(
    model: ModelProto,
    ranges: Mapping[str, calibrate.Range],
    target: Target,
    half: bool = True,
    large: Collection[str] = (),
) -> Callable[[Sequence[str]], ModelProto]:
    """A function that builds the int8 graph of a target with the named layers in float.

    With `half` the rest of a graph for TensorRT is float16, without the nodes of the tensors `large`.
    """

    def make(floats: Sequence[str]) -> ModelProto:
        graph = qdq.int8_graph(model, ranges, target, floats)
        to_half = half and target == "tensorrt" and graphs.opset(graph) >= MIN_HALF_OPSET
        return float16.half(graph, large) if to_half else graph

    return make


def write(graph: ModelProto, parent: OnnxModel, target: Target, folder: Path) -> OnnxModel:
    """Write `student.int8-<target>.onnx` to a folder and return its record.

    Raises:
        EdgeDistillError: TensorRT would misread the graph.
    """
    path = folder / f"student.int8-{target}.onnx"
    if target == "tensorrt":
        qdq.refuse_for_tensorrt(graph, str(path))
    onnx.helper.set_model_props(graph, {graph_types.TARGET: target})
    graphs.write(graph, path)
    return graphs.record(path, "int8", target, opset=parent.opset, parent_sha256=parent.sha256)
