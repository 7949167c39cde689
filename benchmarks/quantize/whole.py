"""Time of a complete `edgedistill export --int8`: EfficientNet-Lite0 at 224 px, 500 calibration images, two targets.

    python -m benchmarks.quantize whole --packs DIR

The run directory is made by two steps of training on one of the packs, because the time does not depend on what the
student has learned. The claim: at most four minutes on two cores, and seconds when nothing has changed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lines import append
from edgedistill.console import say
from edgedistill.run.directory import find_run
from edgedistill.run.files import read_json

KIND, PACK, MAX_MINUTES = "quantize-whole", "tinyimagenet60", 4.0
RECIPE = {
    "name": "whole",
    "data": {"kind": "hf", "labels_per_class": 8, "val_fraction": 0.5},
    "student": {"families": {"efficientnet_lite": {"variant": 0, "input_px": 224}}},
    "search": {"trials": 1, "steps": 1},
    "distill": {"method": "transfer", "steps": 2, "batch_labeled": 8},
}


def run(packs: Path, runs: Path) -> None:
    """Train two steps, export with int8 twice, and append the line."""
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        recipe = Path(folder) / "recipe.yaml"
        document = {**RECIPE, "data": {**RECIPE["data"], "path": str((packs / PACK).resolve())}}  # type: ignore[dict-item]
        recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
        _edgedistill("train", str(recipe), "--runs", folder)
        latest = Path(folder) / "latest"
        seconds = [_edgedistill("export", str(latest), "--int8") for _ in range(2)]
        steps = find_run(latest).manifest()["steps"]
        splits, calibration = (read_json(latest / name) for name in ("data.json", "quantize/calibration.json"))
    step_seconds = {
        name: round(steps[name]["seconds"], 1) for name in ("export", "quantize", "keep", "verify", "bundle")
    }
    line = {
        "student": "efficientnet-lite0 at 224 px",
        "calibration_images": calibration["images"],
        "val": splits["val"],
        "test": splits["test"],
        "seconds": seconds[0],
        "again_seconds": seconds[1],
        "steps": step_seconds,
    }
    append(KIND, line)
    say(markdown([line]))


def _edgedistill(*arguments: str) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "edgedistill", *arguments], check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - started, 1)


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """The newest line as a sentence: the seconds of each step and the verdict on the claim."""
    line = next(reversed(list(lines)), None)
    if line is None:
        return "Not measured yet."
    steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in line["steps"].items())
    holds = "holds" if line["seconds"] <= 60 * MAX_MINUTES else "FAILS"
    images = f"{line['calibration_images']} images to calibrate on, {line['val']} of val, {line['test']} to test"
    return (
        f"`edgedistill export --int8`, {line['student']}, {images}: {line['seconds']:.0f} s ({steps}); again, with "
        f"nothing changed: {line['again_seconds']:.0f} s. At most four minutes: {holds}."
    )
