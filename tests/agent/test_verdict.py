"""What the report says against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.agent import verdict
from edgedistill.agent.job import Job, Model


def test_speed_is_claimed_only_when_the_interval_excludes_one() -> None:
    assert verdict.speed((1.8, 1.7, 1.9)) == []
    assert verdict.speed((1.02, 0.97, 1.06)) == [
        "no difference in speed to fp32: 1.02 times the speed of fp32 [0.97, 1.06] contains 1"
    ]
    assert verdict.speed((0.5, 0.4, 0.6))[0].startswith("slower than fp32")
    assert verdict.speed(None)[0].startswith("too few rounds")


def test_disagreement_is_said_below_99_percent() -> None:
    assert verdict.disagreement(0.99, 200) == []
    assert verdict.disagreement(None, 200) == []
    assert verdict.disagreement(0.97, 200)[0].startswith("answers differ from the host's on 3.0% of 200 images")


def job(*models: tuple[str, str], modes: tuple[str, ...] = ("host-to-host",)) -> Job:
    some = Path("x")
    entries = tuple(Model(name, some, "0" * 64, precision) for name, precision in models)
    return Job(
        backend="onnxruntime-cpu",
        models=entries,
        modes=modes,
        images=some,
        labels=some,
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


def test_results_put_the_processes_together() -> None:
    fp32, int8 = [[4.0, 4.0], [4.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]]
    parts = [part([0, 1, 1, 0], 0.5, fp32=fp32, int8=int8), part(None, 1.5, fp32=fp32, int8=int8)]
    labels_N, host = np.array([0, 1, 0, 0, 1]), {"int8": np.array([0, 1, 1, 0, 1])}
    first, second = verdict.results(job(("fp32", "fp32"), ("int8", "int8")), parts, labels_N, host)
    assert first["samples_ms"] == [4.0] * 8
    assert first["cells"] == [[0, 0, 2], [0, 1, 2], [1, 0, 2], [1, 1, 2]]
    assert (first["ratio_to_fp32"], first["agreement_with_host"], first["warnings"]) == (None, None, [])
    # the first call of each process is told, and stands with the rest of warm-up outside the samples
    assert (first["first_calls_ms"], first["warmup_ms"]) == ([9.0, 9.0], [9.0, 4.0, 9.0, 4.0])
    assert first["verdict"] == "quiet"
    # 2 J over eight images
    assert first["energy"] == {"mj_per_image": 250.0, "meter": "RAPL", "covers": "all"}
    assert second["ratio_to_fp32"] == (2.0, 2.0, 2.0)
    assert (second["accuracy"]["n"], second["accuracy"]["top1"]) == (4, 0.75)
    assert (second["agreement_with_host"], second["warnings"]) == (1.0, [])
    assert second["verdict"].startswith(
        "noisy, because warm-up did not become stable in 2 of 2 processes and the governor is ondemand; do: "
    )


def test_a_mode_is_compared_with_fp32_in_the_same_mode() -> None:
    rounds = {
        "fp32": [[4.0], [4.0]],
        "fp32_offline-8": [[16.0], [16.0]],
        "fp16": [[3.0], [3.0]],
        "fp16_offline-8": [[8.0], [8.0]],
    }
    parts = [part([0], 1.0, 8, **rounds), part(None, 1.0, 8, **rounds)]
    asked = job(("fp32", "fp32"), ("fp16", "fp16"), modes=("host-to-host", "offline-8"))
    results = verdict.results(asked, parts, np.array([0]), {})
    assert [(one["name"], one["mode"]) for one in results] == [
        ("fp32", "host-to-host"),
        ("fp32", "offline-8"),
        ("fp16", "host-to-host"),
        ("fp16", "offline-8"),
    ]
    assert [one["ratio_to_fp32"] for one in results[2:]] == [pytest.approx((4 / 3,) * 3), (2.0, 2.0, 2.0)]
    # 2 J over two queries of eight images in each of two processes
    assert results[1]["energy"]["mj_per_image"] == 62.5


def test_nothing_is_faster_than_answers_of_another_function() -> None:
    fp32, int8 = [[4.0, 4.0], [4.0, 4.0]], [[8.0, 8.0], [8.0, 8.0]]
    parts = [part([0, 1], 0.5, fp32=fp32, int8=int8), part(None, 1.5, fp32=fp32, int8=int8)]
    asked, labels_N = job(("fp32", "fp32"), ("int8", "int8")), np.array([0, 1])
    good, bad = np.array([0, 1]), np.array([1, 1])
    (_, slower) = verdict.results(asked, parts, labels_N, {"fp32": good, "int8": good})
    assert slower["ratio_to_fp32"] is not None and slower["warnings"][0].startswith("slower than fp32")
    # neither where fp32 is another function here, nor where this one is
    for host in ({"fp32": bad, "int8": good}, {"fp32": good, "int8": bad}):
        (_, one) = verdict.results(asked, parts, labels_N, host)
        assert one["ratio_to_fp32"] is None
        assert not any("fp32" in warning for warning in one["warnings"])


def test_energy_is_told_by_the_image() -> None:
    one = {"joules": 3.0}
    parts = [part(None)]
    assert verdict.energy(parts, [one], 24) == {"mj_per_image": 125.0, "meter": "RAPL", "covers": "all"}
    assert verdict.energy([{"process": {}}], [one], 24) is None
    # a process that could not tell leaves the sum unknown
    assert verdict.energy(parts, [one, {"joules": None}], 24) is None
    assert verdict.energy(parts, [{}], 24) is None


def test_without_fp32_there_is_nothing_to_compare_with() -> None:
    cells = [[2.0, 2.0], [2.0, 2.0]]
    (only,) = verdict.results(job(("int8", "int8")), [part([0], int8=cells)], np.array([0]), {})
    assert only["ratio_to_fp32"] is None
    assert not any("fp32" in warning for warning in only["warnings"])
