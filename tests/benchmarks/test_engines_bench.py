"""The benchmark of engines: its table, and what competes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import engines
from edgedistill.agent import backends
from edgedistill.records import OnnxModel


def row(backend: str, artefact: str, p50_ms: float, **others: Any) -> dict[str, Any]:
    defaults = {"ratio": None, "same": True, "loss": None}
    return {"backend": backend, "artefact": artefact, "p50_ms": p50_ms, **defaults, **others}


COMMON: dict[str, Any] = {"sha256": "", "opset": 18, "parent_sha256": "", "size_mb": 1.0}
LINE: dict[str, Any] = {
    "student": "lite0",
    "threads": 1,
    "cpu": "Some processor",
    "cpu_flags": ["avx2", "avx512_vnni"],
    "backend": "openvino",
    "artefact": "int8-cpu",
    "why": "openvino int8-cpu: 1.20 [1.10, 1.30] times as fast as onnxruntime-cpu int8-cpu in fresh processes",
    "rows": [
        row("onnxruntime-cpu", "int8-cpu", 6.0),
        row("openvino", "int8-cpu", 5.0, ratio=[1.2, 1.1, 1.3], loss=[0.001, -0.004, 0.006]),
        row("ncnn", "fp32-ncnn", 9.0, ratio=[0.7, 0.6, 0.8], same=False, loss=[0.2, 0.1, 0.3]),
    ],
}


def test_table_has_newest_line_of_each_student_and_threads() -> None:
    older = {**LINE, "why": "an older reason"}
    text = engines.table([older, LINE, {**LINE, "threads": 2}])
    assert text.count("Some processor (avx2, avx512_vnni)") == 2 and "an older reason" not in text
    assert "| lite0 | onnxruntime-cpu | int8-cpu | 6.00 | the simplest | - |" in text
    assert "| lite0 | **openvino** | int8-cpu | 5.00 | 1.20 [1.10, 1.30] | 0.1 [-0.4, 0.6] |" in text
    assert "| lite0 | ncnn | fp32-ncnn | other answers | - | 20.0 [10.0, 30.0] |" in text
    assert engines.table([]).startswith("Not measured yet")


def test_int8_that_loses_too_much_does_not_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {name: "1" if name in ("onnxruntime-cpu", "ncnn") else "not here: none" for name in backends.BACKENDS}
    monkeypatch.setattr(backends, "available", lambda: here)
    shipped = [
        (Path(name), OnnxModel(**{**COMMON, "path": name, "precision": precision, "target": target}))
        for name, precision, target in (("a", "fp32", "any"), ("b", "int8", "cpu"), ("c", "fp32", "ncnn"))
    ]
    names = [pair.name for pair in engines.pairs(shipped, holds=True)]
    assert names == ["onnxruntime-cpu int8-cpu", "onnxruntime-cpu fp32", "ncnn fp32-ncnn"]
    names = [pair.name for pair in engines.pairs(shipped, holds=False)]
    assert names == ["onnxruntime-cpu fp32", "ncnn fp32-ncnn"]
