"""Verdicts and warnings in the agent's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.agent import verdict
from edgedistill.agent.job import Job, Model


def test_speed_is_claimed_only_when_interval_excludes_one() -> None:
    assert verdict.speed((1.8, 1.7, 1.9)) == []
    assert verdict.speed((1.02, 0.97, 1.06)) == [
        "no difference in speed to fp32: 1.02 times the speed of fp32 [0.97, 1.06] contains 1"
    ]
    assert verdict.speed((0.5, 0.4, 0.6))[0].startswith("slower than fp32")
    assert verdict.speed(None)[0].startswith("too few rounds")


def test_disagreement_below_99_percent_is_reported() -> None:
    assert verdict.disagreement(0.99, 200) == []
    assert verdict.disagreement(None, 200) == []
    assert verdict.disagreement(0.97, 200)[0].startswith("answers differ from the host's on 3.0% of 200 images")


def job(*models: tuple[str, str], modes: tuple[str, ...] = ("host-to-host",)) -> Job:
    placeholder = Path("x")
    job_models = tuple(Model(name, placeholder, "0" * 64, precision) for name, precision in models)
    return Job(
        backend="onnxruntime-cpu",
        models=job_models,
        modes=modes,
        images=placeholder,
        labels=placeholder,
        host_predictions={},
        threads=1,
        processes=2,
        rounds=2,
        samples=8,
        seconds=0.1,
        accuracy_images=4,
    )


def part(
    predicted: list[int] | None, joules: float | None = None, batch: int = 1, **rounds: list[list[float]]
) -> dict[str, Any]:
    variants = {
        name.replace("_", ", "): {
            "warmup_ms": [9.0, 4.0],
            "settled": name != "int8",
            "rounds_ms": cells,
            "predicted": predicted,
            "joules": joules,
            "batch": batch,
            "window": "session.run",
        }
        for name, cells in rounds.items()
    }
    state = {"governor": ["ondemand"]}
    process = {"before": state, "after": state, "cpu_over_wall": 0.99, "energy": {"meter": "RAPL", "covers": "all"}}
    return {"variants": variants, "process": process}


def test_results_combine_all_processes() -> None:
    fp32, int8 = [[4.0, 4.0], [4.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]]
    parts = [part([0, 1, 1, 0], 0.5, fp32=fp32, int8=int8), part(None, 1.5, fp32=fp32, int8=int8)]
    labels_N, host = np.array([0, 1, 0, 0, 1]), {"int8": np.array([0, 1, 1, 0, 1])}
    fp32_row, int8_row = verdict.results(job(("fp32", "fp32"), ("int8", "int8")), parts, labels_N, host)
    assert fp32_row["samples_ms"] == [4.0] * 8
    assert fp32_row["cells"] == [[0, 0, 2], [0, 1, 2], [1, 0, 2], [1, 1, 2]]
    assert (fp32_row["ratio_to_fp32"], fp32_row["agreement_with_host"], fp32_row["warnings"]) == (None, None, [])
    # the first call of each process is listed and belongs, like the rest of warm-up, not to the samples
    assert (fp32_row["first_calls_ms"], fp32_row["warmup_ms"]) == ([9.0, 9.0], [9.0, 4.0, 9.0, 4.0])
    assert fp32_row["verdict"] == "quiet"
    # 2 J over eight images
    assert fp32_row["energy"] == {"mj_per_image": 250.0, "meter": "RAPL", "covers": "all"}
    assert int8_row["ratio_to_fp32"] == (2.0, 2.0, 2.0)
    assert (int8_row["accuracy"]["n"], int8_row["accuracy"]["top1"]) == (4, 0.75)
    assert (int8_row["agreement_with_host"], int8_row["warnings"]) == (1.0, [])
    assert int8_row["verdict"].startswith(
        "noisy, because warm-up did not become stable in 2 of 2 processes and the governor is ondemand; do: "
    )


def test_each_mode_is_compared_with_fp32_in_same_mode() -> None:
    rounds = {
        "fp32": [[4.0], [4.0]],
        "fp32_offline-8": [[16.0], [16.0]],
        "fp16": [[3.0], [3.0]],
        "fp16_offline-8": [[8.0], [8.0]],
    }
    parts = [part([0], 1.0, 8, **rounds), part(None, 1.0, 8, **rounds)]
    two_mode_job = job(("fp32", "fp32"), ("fp16", "fp16"), modes=("host-to-host", "offline-8"))
    rows = verdict.results(two_mode_job, parts, np.array([0]), {})
    assert [(row["name"], row["mode"]) for row in rows] == [
        ("fp32", "host-to-host"),
        ("fp32", "offline-8"),
        ("fp16", "host-to-host"),
        ("fp16", "offline-8"),
    ]
    assert [row["ratio_to_fp32"] for row in rows[2:]] == [pytest.approx((4 / 3,) * 3), (2.0, 2.0, 2.0)]
    # 2 J over two queries of eight images in each of two processes
    assert rows[1]["energy"]["mj_per_image"] == 62.5


def test_speed_is_not_compared_when_predictions_disagree_with_host() -> None:
    fp32, int8 = [[4.0, 4.0], [4.0, 4.0]], [[8.0, 8.0], [8.0, 8.0]]
    parts = [part([0, 1], 0.5, fp32=fp32, int8=int8), part(None, 1.5, fp32=fp32, int8=int8)]
    int8_job, labels_N = job(("fp32", "fp32"), ("int8", "int8")), np.array([0, 1])
    host_N, other_N = np.array([0, 1]), np.array([1, 1])
    (_, slower) = verdict.results(int8_job, parts, labels_N, {"fp32": host_N, "int8": host_N})
    assert slower["ratio_to_fp32"] is not None and slower["warnings"][0].startswith("slower than fp32")
    # no ratio when either the fp32 model or this model disagrees with the host
    for host_predictions in ({"fp32": other_N, "int8": host_N}, {"fp32": host_N, "int8": other_N}):
        (_, row) = verdict.results(int8_job, parts, labels_N, host_predictions)
        assert row["ratio_to_fp32"] is None
        assert not any("fp32" in warning for warning in row["warnings"])


def test_energy_is_reported_per_image() -> None:
    variant = {"joules": 3.0}
    parts = [part(None)]
    assert verdict.energy(parts, [variant], 24) == {"mj_per_image": 125.0, "meter": "RAPL", "covers": "all"}
    assert verdict.energy([{"process": {}}], [variant], 24) is None
    # the sum is unknown if one process has no energy
    assert verdict.energy(parts, [variant, {"joules": None}], 24) is None
    assert verdict.energy(parts, [{}], 24) is None


def test_speed_is_not_compared_without_fp32() -> None:
    cells = [[2.0, 2.0], [2.0, 2.0]]
    (row,) = verdict.results(job(("int8", "int8")), [part([0], int8=cells)], np.array([0]), {})
    assert row["ratio_to_fp32"] is None
    assert not any("fp32" in warning for warning in row["warnings"])
