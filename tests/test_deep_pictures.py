"""16-bit pictures from the folder to the label: the measured range is recorded, and every reader uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgedistill.data.image_store import open_store
from edgedistill.predict.student import of_run
from edgedistill.run.directory import Run
from tests.helpers import miniature

pytestmark = pytest.mark.slow
DARK, PER_LEVEL = 1000, 12  # a camera that uses 3,060 of its 65,536 values


def to_deep(path: Path) -> None:
    levels = np.asarray(Image.open(path).convert("L"), dtype=np.uint16)
    Image.fromarray(levels * PER_LEVEL + DARK).save(path)


def test_range_is_measured_once_and_used_by_every_reader(tmp_path: Path) -> None:
    project = miniature.write(tmp_path / "project")
    paths = sorted([*(project.root / "pictures").rglob("*.png"), *(project.root / "more").rglob("*.png")])
    for path in paths:
        to_deep(path)
    completed = miniature.call("run", project.recipe, "--runs", project.runs)
    assert completed.code == 0, completed.err
    train = [path for path in paths if "test" not in path.parts]
    values = np.concatenate([np.asarray(Image.open(path)).ravel() for path in train])
    expected = np.percentile(values, (0.1, 99.9), method="inverted_cdf").tolist()
    bundle = json.loads((project.run / "bundle/bundle.json").read_text())
    report = json.loads((project.run / "report.json").read_text())
    assert bundle["range"] == report["data"]["range"] == expected

    (folder,) = (project.runs / ".cache/images").glob("*-test")
    store = open_store(folder)
    assert store is not None and 0.2 < store.images_NHWC.mean() / 255 < 0.8
    assert ((store.images_NHWC == 0) | (store.images_NHWC == 255)).mean() < 0.01, "nothing is clipped but outliers"

    pictures = [path for path in paths if "test" in path.parts][:3]
    predictions = of_run(Run(path=project.run)).predict(pictures)
    command = [sys.executable, str(project.run / "bundle/label.py"), *map(str, pictures)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.stdout.splitlines() == [
        f"{prediction.path}: {prediction.label} {prediction.probability:.1%}" for prediction in predictions
    ], process.stderr

    description = {**bundle, "range": None}
    (project.run / "bundle/bundle.json").write_text(json.dumps(description))
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2 and "has more than 8 bits" in process.stderr and "Traceback" not in process.stderr
