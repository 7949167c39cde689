"""The settings of the comparison with torchdistill: each has a student and its eight sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgedistill.recipe.schema import Augment

SOURCES, IMAGES, BATCH, TARGET_CLASSES, ROUNDS, LAM = 8, 192, 64, 10, 5, 0.8
NAMES = tuple(f"source{index}" for index in range(SOURCES))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A student and its sources; a round has `epochs` epochs of edgedistill, so that both sides run for seconds."""

    family: str
    options: Mapping[str, Any]
    epochs: int
    source: str = "tf_efficientnet_lite0"
    source_px: int = 128
    augment: Augment = field(default_factory=Augment)


SETTINGS = (
    Setting(family="micro", options={"width": 16, "input_px": 32}, epochs=16),
    Setting(family="efficientnet_lite", options={"variant": 0, "input_px": 128, "weights": "none"}, epochs=1),
)
