"""ModelOpt's answers to files that people bring, without ModelOpt: its graph is given, or it fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import own_models
from benchmarks.own_models import KINDS, Net, scripted, static, textures
from benchmarks.quantize.environments import Built, PeerError

BUILT = Built(python=Path("python"), versions={"nvidia-modelopt": "1"}, seconds=0.0)
IMAGES = textures(16, seed=2)[0], textures(20, seed=3)[0]


def answer(model: Path) -> tuple[float | None, str]:
    line = own_models.modelopt_answer(model, *IMAGES, BUILT)
    assert line["modelopt_packages"] == {"nvidia-modelopt": "1"}
    return line["modelopt"], line["modelopt_reason"]


def test_answer_of_modelopt_is_agreement_or_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted(Net(), tmp_path / "model.onnx")

    def quantizes(command: list[str]) -> str:
        static(model, tmp_path / "modelopt.onnx", IMAGES[0])
        return ""

    def copies(command: list[str]) -> str:
        shutil.copy(command[command.index("--model") + 1], command[command.index("--out") + 1])
        return ""

    def fails(command: list[str]) -> str:
        raise PeerError("exit status 1: no such operator")

    outcomes = []
    for peer in (quantizes, copies, fails):
        monkeypatch.setattr(own_models, "run_command", peer)
        outcomes.append(answer(model))
    assert outcomes[0][0] is not None and outcomes[0][0] > 0.9 and outcomes[0][1] == ""
    assert outcomes[1:] == [(1.0, "left as it is"), (None, "exit status 1: no such operator")]


def test_table_has_a_column_for_each_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"name": "softmax", "ours": 1.0, "reason": "", "static": None, "static_reason": "Fail: x"}
    new = {**old, "name": "quantized", "modelopt": 1.0, "modelopt_reason": "left as it is"}
    monkeypatch.setattr(own_models, "read", lambda kind: iter([old, new]))
    assert list(KINDS).index("softmax") < list(KINDS).index("quantized")
    assert own_models.table().splitlines()[2:] == [
        "| softmax | 100.0% | Fail: x | - |",
        "| quantized | 100.0% | Fail: x | 100.0%, left as it is |",
    ]
