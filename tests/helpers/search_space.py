"""A student space of two families, and a score with one best candidate."""

from __future__ import annotations

from edgedistill.records import Cost, StudentSpec

HALF = (0.5, 0.5, 0.5)


def space(widths: int = 4, sizes: tuple[int, ...] = (32, 64, 96)) -> list[StudentSpec]:
    """Two families; MACs are width * px / 100 millions."""
    return [
        StudentSpec(
            family=family,
            options={"width": 8 * multiple},
            input_px=px,
            num_classes=2,
            cost=Cost(macs_m=8 * multiple * px / 100, params_m=1.0, weights_mb=4.0),
            mean=HALF,
            std=HALF,
        )
        for family in ("micro", "resnet")
        for multiple in range(1, widths + 1)
        for px in sizes
    ]


def quality(spec: StudentSpec) -> float:
    """A score with one best candidate: wide resnets at 64 px."""
    return float(spec.options["width"]) / 100 + 0.3 * (spec.family == "resnet") - abs(spec.input_px - 64) / 200
