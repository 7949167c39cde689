"""Which precision a target gets, and why: int8 where it is accurate enough and measurably faster, else a higher one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgedistill.agent.metrics import ratio_interval
from edgedistill.records import BenchReport, Guarded, Kept, OnnxModel, Target

Ratio = tuple[float, float, float]
TIMING_BACKENDS: dict[Target, str] = {
    "cpu": "onnxruntime-cpu",
    "tensorrt": "tensorrt",
}  # where a target's speed is measured


def choose_precision(
    target: Target,
    models: Sequence[OnnxModel],
    guarded: Guarded | None,
    min_speedup: float,
    ratio: Ratio | None,
    untimed: str,
) -> Kept:
    """Decide for one target.

    Args:
        target: "cpu" or "tensorrt".
        models: every graph there is, fp32 among them, and the target's int8 one.
        guarded: what the accuracy guard said; None where there were no val images to ask.
        min_speedup: what the whole interval of the ratio must lie above.
        ratio: the higher precision's time over int8's, (middle, low, high), 95 %; None where it was not measured.
        untimed: why not.
    """
    int8 = next(one for one in models if one.precision == "int8" and one.target == target)
    higher = higher_precision(target, models)
    lost = describe_guard(guarded)
    if guarded and not guarded.holds:
        return Kept(target=target, artefact=higher.name, precision=higher.precision, why=f"int8 {lost}", ratio=ratio)
    if ratio is None:
        return Kept(target=target, artefact=int8.name, precision="int8", why=f"{lost}; {untimed}")
    middle, low, high = ratio
    speed = f"{middle:.2f} [{low:.2f}, {high:.2f}] times as fast as {higher.precision}"
    if low > min_speedup:
        return Kept(target=target, artefact=int8.name, precision="int8", why=f"{lost}; {speed}", ratio=ratio)
    return Kept(
        target=target,
        artefact=higher.name,
        precision=higher.precision,
        why=f"int8 is {speed}, and more than {min_speedup:g} is asked for",
        ratio=ratio,
    )


def higher_precision(target: Target, models: Sequence[OnnxModel]) -> OnnxModel:
    """The graph that a target gets without int8: float16 for TensorRT where there is one, else fp32."""
    wanted = ("fp16", "fp32") if target == "tensorrt" else ("fp32",)
    return next(one for precision in wanted for one in models if one.precision == precision)


def speed_ratio(higher: BenchReport, int8: BenchReport) -> Ratio | None:
    """The higher precision's time over int8's where both were measured in the same cells of one run; else None."""
    if not (higher.latency.samples_ms and int8.latency.samples_ms):
        return None
    higher_ms, int8_ms = _cells(higher), _cells(int8)
    paired = [len(rounds) for rounds in higher_ms] == [len(rounds) for rounds in int8_ms]
    return ratio_interval(higher_ms, int8_ms) if paired else None


def _cells(report: BenchReport) -> list[list[float]]:
    """The median of every cell in ms: one list a process, in the order of its rounds."""
    found: dict[int, list[float]] = {}
    at = 0
    for process, _, count in report.facts.get("cells", ()):
        found.setdefault(process, []).append(float(np.median(report.latency.samples_ms[at : at + count])))
        at += count
    return list(found.values())


def describe_guard(guarded: Guarded | None) -> str:
    """The accuracy guard's finding in words."""
    if guarded is None:
        return "its accuracy was not guarded: there are no images to do it with"
    drop = guarded.drop
    interval = f"[{drop.low:.1f}, {drop.high:.1f}]"
    where = f"on {drop.n} images of val"
    if not guarded.holds:
        return f"loses {drop.points:.2f} points {interval} {where}, at most {guarded.max_drop:g} may be lost"
    lost = f"gains {-drop.points:.1f} points (loss {interval})" if drop.points < 0 else None
    said = f"{lost or f'loses {drop.points:.1f} points {interval}'} {where}"
    if drop.points > guarded.max_drop:
        said += f", but other labels than fp32's on only {drop.differ:.1f} % of {drop.images} images"
    if guarded.qat is not None and guarded.before:
        said += f" after quantization-aware distillation ({guarded.before.points:.1f} before)"
    if guarded.floats and guarded.before:
        layers = "1 layer" if len(guarded.floats) == 1 else f"{len(guarded.floats)} layers"
        said += f" with {layers} in float ({guarded.before.points:.1f} without)"
    return said
