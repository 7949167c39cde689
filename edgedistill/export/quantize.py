"""One calibration, and from its ranges one int8 graph for each backend, as good as it can be had.

What TensorRT wants is what ONNX Runtime on a CPU cannot fuse, and the reverse, so the placement of the Q/DQ pairs is
the backend's (plan.py) and the ranges are everybody's (calibrate.py). N images, H x W pixels, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from edgedistill.agent import metrics
from edgedistill.console import bar
from edgedistill.export import calibrate, graphs, guard, qdq
from edgedistill.export.infer import check_images, predict_onnx
from edgedistill.export.placement import plan
from edgedistill.recipe.schema import Quantize
from edgedistill.records import OnnxModel, Target
from edgedistill.run import artifacts
from edgedistill.run.files import sha256_file, write_json

log = logging.getLogger(__name__)

COMPARED = 256  # calibration images on which `auto` compares the rules
LEAST_AGREEMENT = 0.995  # of an int8 graph with the fake-quantized student that it was trained as
OLDEST_HALF = 19  # before this opset a Q/DQ pair knows no float16


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A float graph that was trained on in a target's arithmetic, its ranges, and what the fake-quantized net says.

    `labels_N` are its labels on `images_NHWC`, uint8 [N, px, px, 3]: what its int8 graph must say, too.
    """

    model: ModelProto
    ranges: Mapping[str, calibrate.Range]
    images_NHWC: np.ndarray
    labels_N: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The ranges, by which rule, and what `auto` saw of each: {rule: {"agreement", "noise"}}."""

    method: str
    ranges: dict[str, calibrate.Range]
    tried: dict[str, dict[str, float]]


def quantize(
    fp32: Path,
    parent: OnnxModel,
    images_NHWC: np.ndarray,
    settings: Quantize,
    folder: Path,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    score: str = "top1",
    tune: Callable[[ModelProto, Mapping[str, calibrate.Range], Target], Tuned] | None = None,
    half: bool = True,
) -> list[OnnxModel]:
    """Calibrate once, and write `student.int8-<target>.onnx` for every target, with `calibration.json` beside them.

    Args:
        fp32: the graph that `export` wrote.
        parent: its record.
        images_NHWC: uint8 [N, px, px, 3] of train; the first `settings.calibration_images` are used.
        settings: method, number of images, targets, and the bound on the loss of accuracy.
        folder: where the files go.
        val: images as above and their labels, for the accuracy guard, which writes guard.json, and sensitivity.json
            with the layers it had to rank. None leaves the graphs unguarded.
        score: "top1" or "balanced": what the guard counts.
        tune: trains the graph on for a target, in that target's arithmetic; what loses less on val is taken.
        half: whether what stays float is float16 for TensorRT.

    Returns:
        A record per target, in the order of `settings.targets`; `path` is the bare file name.

    Raises:
        InputError: `images_NHWC` is not uint8 [N, px, px, 3] with N >= 1.
        EdgeDistillError: a range is not finite, or the graph is not one TensorRT would read as meant.
    """
    check_images(images_NHWC)
    used = images_NHWC[: settings.calibration_images]
    model, complaints = onnx.load(fp32), _complaints(len(used), settings)
    for line in complaints:
        log.warning(line)
    found = calibrated(model, used, settings)
    record(folder / artifacts.CALIBRATION.name, found, used, complaints)
    makers = {target: maker(model, found.ranges, target, half) for target in settings.targets}
    if val is None or not len(val[1]):
        return [write(make(()), parent, target, folder) for target, make in makers.items()]
    guarding = guard.Guard(
        model=model, ranges=found.ranges, images_NHWC=used, val=val, max_drop=settings.max_drop, score=score
    )
    outcomes = {}
    for target, make in makers.items():
        trained = _trained(tune(model, found.ranges, target), target, half) if tune else None
        outcomes[target] = guarding.hold(target, make, trained)
    write_json(folder / artifacts.GUARD.name, [asdict(one.guarded) for one in outcomes.values()])
    ranked = {target: one.sensitivity for target, one in outcomes.items() if one.sensitivity}
    write_json(folder / "sensitivity.json", ranked)
    return [write(one.graph, parent, target, folder) for target, one in outcomes.items()]


def _trained(one: Tuned, target: Target, half: bool) -> guard.Trained:
    """The int8 graph of a tuned student, by the same passes; and how often it answers as the student did in torch."""
    make = maker(one.model, one.ranges, target, half)
    same = metrics.agreement(answers(make(()), one.images_NHWC, target).argmax(axis=1), one.labels_N)
    if same < LEAST_AGREEMENT:
        shares = f"{same:.1%} of {len(one.labels_N)} images, less than {LEAST_AGREEMENT:.1%}"
        log.warning(f"quantize.qat: the int8 graph for {target} answers as the student it was trained as on {shares}")
    return guard.Trained(model=one.model, ranges=one.ranges, make=make, agreement=same)


def record(path: Path, found: Calibrated, used: np.ndarray, complaints: Sequence[str]) -> None:
    """calibration.json: the rule, what `auto` compared, the ranges, and every image by the sha256 of its pixels."""
    hashes = [calibrate.image_hash(image) for image in used]
    write_json(
        path,
        {
            "method": found.method,
            "images": len(used),
            "warnings": list(complaints),
            "tried": found.tried,
            "ranges": found.ranges,
            "sha256": hashes,
        },
    )


def _complaints(n: int, settings: Quantize) -> list[str]:
    if n >= settings.calibration_images:
        return []
    return [f"quantize: calibrated on {n} images of the {settings.calibration_images} asked for; train has no more"]


def calibrated(model: ModelProto, images_NHWC: np.ndarray, settings: Quantize) -> Calibrated:
    """The ranges of all that any target quantizes, by the rule asked for; `auto` compares them on the first target."""
    # the CPU's graph has every tensor of the other, and the gates of hard-swish besides
    whole = qdq.prepared(model, "cpu")
    names = {name for target in settings.targets for name in plan(qdq.prepared(model, target), target).ranged()}
    seen = calibrate.collect(whole, images_NHWC, sorted(names))
    if settings.method != "auto":
        return Calibrated(method=settings.method, ranges=calibrate.ranges(seen, settings.method), tried={})
    target = settings.targets[0]
    compared = images_NHWC[:: max(1, len(images_NHWC) // COMPARED)][:COMPARED]
    wanted_NC = predict_onnx(model.SerializeToString(), compared)
    candidates = {method: calibrate.ranges(seen, method) for method in calibrate.METHODS}
    tried: dict[str, dict[str, float]] = {}
    with bar("compare calibrations", len(candidates)) as shown:
        for method, ranges in candidates.items():
            tried[method] = closeness(wanted_NC, answers(maker(model, ranges, target)(()), compared, target))
            shown(1)
    best = max(tried, key=lambda method: (tried[method]["agreement"], -tried[method]["noise"]))
    return Calibrated(method=best, ranges=candidates[best], tried=tried)


def closeness(wanted_NC: np.ndarray, got_NC: np.ndarray) -> dict[str, float]:
    """Share of equal labels, and the root mean square difference of the logits over their standard deviation."""
    noise = float(np.sqrt(np.mean((got_NC - wanted_NC) ** 2)) / (wanted_NC.std() or 1.0))
    return {"agreement": metrics.agreement(wanted_NC.argmax(1), got_NC.argmax(1)), "noise": noise}


def answers(graph: ModelProto, images_NHWC: np.ndarray, target: Target) -> np.ndarray:
    """Logits [N, C] of an int8 graph as its target computes them, by simulation where that is not a CPU."""
    return predict_onnx(graph.SerializeToString(), images_NHWC, simulate=target != "cpu")


def maker(
    model: ModelProto, ranges: Mapping[str, calibrate.Range], target: Target, half: bool = True
) -> Callable[[Sequence[str]], ModelProto]:
    """What makes the int8 graph of a target with the named layers left float."""

    def make(floats: Sequence[str]) -> ModelProto:
        graph = qdq.int8_graph(model, ranges, target, floats)
        halved = half and target == "tensorrt" and graphs.opset(graph) >= OLDEST_HALF
        return graphs.half(graph) if halved else graph

    return make


def write(graph: ModelProto, parent: OnnxModel, target: Target, folder: Path) -> OnnxModel:
    """`student.int8-<target>.onnx` in a folder, and its record."""
    path = folder / f"student.int8-{target}.onnx"
    if target == "tensorrt":
        qdq.refuse_for_tensorrt(graph, str(path))
    graphs.write(graph, path)
    size_mb = path.stat().st_size / 1e6
    return OnnxModel(
        path=path.name,
        sha256=sha256_file(path),
        precision="int8",
        target=target,
        opset=parent.opset,
        parent_sha256=parent.sha256,
        size_mb=size_mb,
    )
