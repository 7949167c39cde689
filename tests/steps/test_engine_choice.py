"""Which engines compete on a device, and which count for a latency budget of "any"."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgedistill import check
from edgedistill.agent import backends
from edgedistill.steps import engine_choice, timing


def test_engines_for_cpus_compete_with_onnx_runtime_first() -> None:
    competing = engine_choice.competing(("openvino", "tensorrt", "onnxruntime-cpu", "ncnn-half"))
    assert competing == ("onnxruntime-cpu", "openvino", "ncnn-half")
    assert engine_choice.competing(("onnxruntime-cpu",)) == ()
    assert engine_choice.competing(("openvino", "ncnn")) == (), "ONNX Runtime is what they are compared with"


def test_any_counts_the_engines_that_are_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inventory = tmp_path / "devices.yaml"
    inventory.write_text(
        "pi: {transport: ssh, host: pi, backends: [openvino, ncnn]}\nbare: {transport: ssh, host: bare}\n"
    )
    context: Any = SimpleNamespace(inventory=inventory)
    here = {"onnxruntime-cpu": "1.31", "openvino": "not here: openvino does not import"}
    monkeypatch.setattr(backends, "available", lambda: here)
    assert timing.engines_there(context, "local") == ("onnxruntime-cpu",)
    here["openvino"] = "2026.4"
    assert timing.engines_there(context, "local") == ("onnxruntime-cpu", "openvino")
    assert timing.engines_there(context, "pi") == ("openvino",)
    assert timing.engines_there(context, "bare") == ("onnxruntime-cpu",)


def test_budget_takes_any_and_refuses_ncnn() -> None:
    def problems(backend: str) -> list[str]:
        raw = {"student": {"budget": {"latency_ms": {"at_most": 5, "backend": backend}}}}
        return [problem.message for problem in check.unbound(raw) if "latency_ms" in problem.key]

    assert problems("any") == [] and problems("openvino") == []
    assert ["has a graph of its own" in message for message in problems("ncnn")] == [True]
    assert problems("anything")[0].startswith("no backend is called anything")
