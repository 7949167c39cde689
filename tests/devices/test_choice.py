"""The choice of an engine: measured with the real agent, and decided from measurements that are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.devices import choice
from edgedistill.devices.bench import AgentReport, Measurement
from edgedistill.devices.choice import Pair
from edgedistill.errors import EdgeDistillError
from edgedistill.measurements import Device, EngineChoice
from edgedistill.recipe.schema import Bench
from edgedistill.records import Accuracy, OnnxModel

N, CELLS = 30, [(process, round_, 4) for process in range(3) for round_ in range(3)]
LOCAL, QUICK = Device(name="local"), Bench(processes=3, rounds=3, samples=36, seconds=0.001, accuracy_images=N)
ACCURACY = Accuracy(n=N, top1=0.9, top1_ci95=(0.8, 1.0), balanced=0.9, balanced_ci95=(0.8, 1.0))


def chosen(
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    models: Sequence[tuple[Path, OnnxModel]],
    *,
    runs: Sequence[dict[str, float]],
    other_answers: str = "",
    losses: dict[str, float] | None = None,
    max_drop: float = 1.0,
) -> EngineChoice:
    """The choice where each run of the agent measures the given milliseconds by the name of the pair."""
    left, lost = list(runs), losses or {}

    def _agreement(name: str) -> float:
        return 0.5 if name == other_answers else 0.95 if name in lost else 1.0

    def run_agent(device: Device, files: Sequence[Path], job: dict[str, Any], ssh_config: Path | None) -> AgentReport:
        times_ms, noise = left.pop(0), np.random.default_rng(0).uniform(0.99, 1.01, size=len(CELLS) * 4)
        results = tuple(
            Measurement(
                name=entry["name"],
                mode="host-to-host",
                batch=1,
                window="",
                sha256=entry["sha256"],
                precision=entry["precision"],
                samples_ms=tuple(times_ms[entry["name"]] * noise),
                cells=tuple(CELLS),
                warmup_ms=(),
                accuracy=ACCURACY,
                ratio_to_fp32=None,
                warnings=(),
                agreement_with_host=_agreement(entry["name"]),
                loss_to_host=(lost[entry["name"]],) * 3 if entry["name"] in lost else None,
            )
            for entry in job["models"]
        )
        assert [entry["backend"] for entry in job["models"]] == [entry["name"].split()[0] for entry in job["models"]]
        return AgentReport(
            version=job["version"], backend=job["backend"], backend_version="1", facts={"cpu": "X"}, results=results
        )

    monkeypatch.setattr(choice, "run_agent", run_agent)
    fp32, int8 = (record for _, record in models)
    pairs = [
        Pair(backend=backend, model=model) for backend in ("onnxruntime-cpu", "openvino") for model in (int8, fp32)
    ]
    outcome = choice.choose(bundle, LOCAL, pairs, QUICK, min_speedup=1.05, max_drop=max_drop)
    assert left == [], "every run of the agent was asked for"
    return outcome


Models = list[tuple[Path, OnnxModel]]
SIMPLEST, FASTEST = "onnxruntime-cpu int8-cpu", "openvino int8-cpu"
TIMES = {SIMPLEST: 2.0, "onnxruntime-cpu fp32": 4.0, FASTEST: 1.0, "openvino fp32": 3.0}


def test_fastest_is_chosen_once_it_is_confirmed(monkeypatch: pytest.MonkeyPatch, bundle: Path, models: Models) -> None:
    outcome = chosen(monkeypatch, bundle, models, runs=[TIMES, TIMES])
    assert (outcome.backend, outcome.artefact) == ("openvino", "int8-cpu")
    assert outcome.why.startswith("openvino int8-cpu: 2.00 [2.00, 2.00] times as fast as onnxruntime-cpu int8-cpu")
    assert [row.p50_ms for row in outcome.rows] == pytest.approx([2.0, 4.0, 1.0, 3.0], rel=0.02)
    assert outcome.rows[0].ratio is None and outcome.cpu == "X"


def test_simplest_is_kept_where_fresh_processes_do_not_confirm(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, models: Models
) -> None:
    outcome = chosen(monkeypatch, bundle, models, runs=[TIMES, {**TIMES, FASTEST: 1.95}])
    assert (outcome.backend, outcome.artefact) == ("onnxruntime-cpu", "int8-cpu")
    assert "the simplest; openvino int8-cpu is 1.03" in outcome.why and "more than 1.05 is required" in outcome.why


def test_simplest_that_is_the_fastest_is_not_timed_again(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, models: Models
) -> None:
    outcome = chosen(monkeypatch, bundle, models, runs=[{**TIMES, SIMPLEST: 0.5}])
    assert outcome.why == "onnxruntime-cpu int8-cpu: the simplest, and none was faster" and outcome.ratio is None


def test_engine_with_other_answers_is_never_chosen(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, models: Models
) -> None:
    outcome = chosen(monkeypatch, bundle, models, runs=[TIMES], other_answers=FASTEST)
    assert outcome.backend == "onnxruntime-cpu" and [row.same for row in outcome.rows] == [True, True, False, True]
    with pytest.raises(EdgeDistillError, match="gives other answers than the host"):
        chosen(monkeypatch, bundle, models, runs=[TIMES], other_answers=SIMPLEST)


def test_engine_may_lose_what_the_recipe_lets_int8_lose(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, models: Models
) -> None:
    """The fastest pair loses 2.0 points, shown: its whole interval is there."""
    lost = {FASTEST: 0.02}
    outcome = chosen(monkeypatch, bundle, models, runs=[TIMES], losses=lost, max_drop=1.9)
    assert outcome.backend == "onnxruntime-cpu" and not outcome.rows[2].same
    assert outcome.why.endswith(f"more than 1.9 points are lost: {FASTEST}")
    outcome = chosen(monkeypatch, bundle, models, runs=[TIMES, TIMES], losses=lost, max_drop=2.1)
    assert outcome.backend == "openvino" and outcome.why.endswith("in fresh processes")


def test_engines_are_timed_by_one_program(
    bundle: Path, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    fp32 = models[0][1]
    pairs = [Pair(backend=name, model=fp32) for name in ("onnxruntime-cpu", "openvino")]
    outcome = choice.choose(bundle, LOCAL, pairs, QUICK, min_speedup=1.05, max_drop=1.0)
    assert [row.backend for row in outcome.rows] == ["onnxruntime-cpu", "openvino"]
    assert all(row.same and row.agreement == 1.0 and row.p50_ms > 0 for row in outcome.rows)
    assert outcome.rows[1].ratio is not None and outcome.rows[1].loss is not None
