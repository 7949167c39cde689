"""The choice of a target's precision: int8 if it is accurate enough and measurably faster, else a higher one."""

from __future__ import annotations

from collections.abc import Sequence

from edgedistill.agent.metrics import cell_medians, ratio_interval
from edgedistill.measurements import BenchReport
from edgedistill.records import Drop, Guarded, Kept, OnnxModel, Target

Ratio = tuple[float, float, float]
MANY_CHANGED = 3.0  # percent of the labels: worth a word, even if none is lost by it
TIMING_BACKENDS: dict[Target, str] = {
    "cpu": "onnxruntime-cpu",
    "tensorrt": "tensorrt",
}  # the backend on which a target's speed is measured


def choose_precision(
    target: Target,
    models: Sequence[OnnxModel],
    guarded: Guarded | None,
    min_speedup: float,
    ratio: Ratio | None,
    untimed: str,
) -> Kept:
    """Choose the precision of one target.

    Args:
        target: "cpu" or "tensorrt".
        models: all graphs, among them fp32 and the target's int8 one.
        guarded: the accuracy guard's record; None without images to compare on.
        min_speedup: the lower end of the ratio's interval must be above it.
        ratio: the higher precision's time divided by int8's, (middle, low, high), 95 %; None if not measured.
        untimed: the reason, if it was not measured.
    """
    int8 = next(model for model in models if model.precision == "int8" and model.target == target)
    higher = higher_precision(target, models)
    accuracy = describe_guard(guarded)
    if guarded and not guarded.holds:
        return Kept(
            target=target, artefact=higher.name, precision=higher.precision, why=f"int8 {accuracy}", ratio=ratio
        )
    if ratio is None:
        return Kept(target=target, artefact=int8.name, precision="int8", why=f"{accuracy}; {untimed}")
    middle, low, high = ratio
    speed = f"{middle:.2f} [{low:.2f}, {high:.2f}] times as fast as {higher.precision}"
    if low > min_speedup:
        return Kept(target=target, artefact=int8.name, precision="int8", why=f"{accuracy}; {speed}", ratio=ratio)
    return Kept(
        target=target,
        artefact=higher.name,
        precision=higher.precision,
        why=f"int8 is {speed}, and more than {min_speedup:g} is required",
        ratio=ratio,
    )


def higher_precision(target: Target, models: Sequence[OnnxModel]) -> OnnxModel:
    """The graph of a target without int8: float16 for TensorRT if there is one, else fp32."""
    precisions = ("fp16", "fp32") if target == "tensorrt" else ("fp32",)
    return next(model for precision in precisions for model in models if model.precision == precision)


def speed_ratio(higher: BenchReport, int8: BenchReport) -> Ratio | None:
    """The higher precision's time divided by int8's; None unless both were measured in the same cells of one run."""
    if not (higher.latency.samples_ms and int8.latency.samples_ms):
        return None
    higher_ms, int8_ms = (
        cell_medians(report.latency.samples_ms, report.facts.get("cells", ())) for report in (higher, int8)
    )
    paired = [len(rounds) for rounds in higher_ms] == [len(rounds) for rounds in int8_ms]
    return ratio_interval(higher_ms, int8_ms) if paired else None


def describe_guard(guarded: Guarded | None) -> str:
    """Describe the accuracy guard's record in words."""
    if guarded is None:
        return "its accuracy was not guarded: there are no images to compare on"
    drop = guarded.drop
    interval = f"[{drop.low:.1f}, {drop.high:.1f}]"
    where = f"on {describe_witnesses(drop)}"
    if not guarded.holds:
        return f"loses {drop.points:.2f} points {interval} {where}, at most {guarded.max_drop:g} may be lost"
    gain = f"gains {-drop.points:.1f} points (loss {interval})" if drop.points < 0 else None
    description = f"{gain or f'loses {drop.points:.1f} points {interval}'} {where}"
    if drop.points > guarded.max_drop:
        few = drop.differ <= guarded.max_drop
        changed = f"other labels than fp32's on only {drop.differ:.1f} % of {drop.images} images"
        description += f", but {changed if few else f'that more than {guarded.max_drop:g} is lost is not shown'}"
    if guarded.qat is not None and guarded.before:
        description += f" after quantization-aware distillation ({guarded.before.points:.1f} before)"
    if guarded.floats and guarded.before:
        layers = "1 layer" if len(guarded.floats) == 1 else f"{len(guarded.floats)} layers"
        description += f" with {layers} in float ({guarded.before.points:.1f} without)"
        if guarded.sets > 1:
            description += f", the {'fastest' if guarded.timed else 'cheapest'} of {guarded.sets} choices"
    if drop.differ >= MANY_CHANGED and drop.points <= guarded.max_drop and drop.least <= 0:
        description += f"; it answers otherwise on {drop.differ:.1f} % of {drop.images} images, and no loss is shown"
    return description


def describe_witnesses(drop: Drop) -> str:
    """The images on which a loss was measured: `480 images of val`, `30 images of val and 434 without a label`."""
    if drop.agreement:
        return f"{drop.n} images, by fp32's own labels"
    if drop.trained:
        some = f", {drop.trained} of which" if drop.trained < drop.n else " that"
        return f"{drop.n} images{some} the student was trained on, for want of others"
    if not drop.unlabeled:
        return f"{drop.n} images of val"
    if drop.unlabeled == drop.n:
        return f"{drop.n} images without a label"
    return f"{drop.n - drop.unlabeled} images of val and {drop.unlabeled} without a label"
