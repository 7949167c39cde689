"""Verdicts and warnings in the agent's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.agent import verdict
from edgedistill.agent.job import Job, Model


def test_speed_is_claimed_only_when_interval_excludes_one() -> None:
    assert verdict.speed((1.8, 1.7, 1.9), 3, 15) == []
    assert verdict.speed((1.02, 0.97, 1.06), 3, 15) == [
        "no difference in speed to fp32: 1.02 times the speed of fp32 [0.97, 1.06] contains 1"
    ]
    assert verdict.speed((0.5, 0.4, 0.6), 3, 15)[0].startswith("slower than fp32")
    assert verdict.speed(None, 1, 6) == [
        "too few rounds (6 in 1 process) to compare with fp32, at least 9 in 3 processes are needed; "
        "do: edgedistill bench --again --set bench.processes=3 --set bench.rounds=5"
    ]


def test_disagreement_below_99_percent_is_reported() -> None:
    assert verdict.disagreement(0.99, 200) == []
    assert verdict.disagreement(None, 200) == []
    assert verdict.disagreement(0.97, 200)[0].startswith("answers differ from the host's on 3.0% of 200 images")


def test_backend_with_own_arithmetic_is_judged_by_accuracy() -> None:
    labels_N = np.arange(200) % 2
    host_N = labels_N.copy()
    host_N[:6] ^= 1  # six are wrong
    as_good_N, worse_N = host_N.copy(), host_N.copy()
    as_good_N[[0, 1, 2, 50, 51, 52]] ^= 1  # three are mended, three are broken
    worse_N[50:70] ^= 1
    as_good = verdict.loss_to_host("openvino-reduced", as_good_N, labels_N, host_N)
    worse = verdict.loss_to_host("openvino-reduced", worse_N, labels_N, host_N)
    assert as_good is not None and worse is not None and as_good[0] == 0.0 and worse[0] == pytest.approx(0.1)
    assert verdict.disagreement(0.97, 200, as_good) == []
    assert verdict.disagreement(0.9, 200, worse)[0].startswith("answers differ from the host's on 10.0%")
    # much that differs is another function, even if chance makes it no worse
    assert verdict.disagreement(0.8, 200, as_good)[0].startswith("answers differ")
    assert verdict.loss_to_host("onnxruntime-cpu", worse_N, labels_N, host_N) is None
    assert verdict.loss_to_host("openvino", worse_N, np.full(200, -1), host_N) is None


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
    fp32, int8 = [[4.0] * 12] * 3, [[2.0] * 12] * 3
    others = [part(None, joules, fp32=fp32, int8=int8) for joules in (1.5, 7.0)]
    parts = [part([0, 1, 1, 0], 0.5, fp32=fp32, int8=int8), *others]
    labels_N, host = np.array([0, 1, 0, 0, 1]), {"int8": np.array([0, 1, 1, 0, 1])}
    fp32_row, int8_row = verdict.results(job(("fp32", "fp32"), ("int8", "int8")), parts, labels_N, host)
    assert fp32_row["samples_ms"] == [4.0] * 108
    assert fp32_row["cells"] == [[process, round_, 12] for process in range(3) for round_ in range(3)]
    assert (fp32_row["ratio_to_fp32"], fp32_row["agreement_with_host"], fp32_row["warnings"]) == (None, None, [])
    # the first call of each process is listed and belongs, like the rest of warm-up, not to the samples
    assert (fp32_row["first_calls_ms"], fp32_row["warmup_ms"]) == ([9.0] * 3, [9.0, 4.0] * 3)
    assert fp32_row["verdict"] == "quiet"
    # 9 J over 108 images
    assert fp32_row["energy"] == {"mj_per_image": pytest.approx(1000 / 12), "meter": "RAPL", "covers": "all"}
    assert int8_row["ratio_to_fp32"] == (2.0, 2.0, 2.0)
    assert (int8_row["accuracy"]["n"], int8_row["accuracy"]["top1"]) == (4, 0.75)
    assert (int8_row["agreement_with_host"], int8_row["warnings"]) == (1.0, [])
    assert int8_row["verdict"].startswith(
        "noisy, because warm-up did not become stable in 3 of 3 processes and the governor is ondemand; do: "
    )


def test_each_mode_is_compared_with_fp32_in_same_mode() -> None:
    rounds = {
        "fp32": [[4.0]] * 3,
        "fp32_offline-8": [[16.0]] * 3,
        "fp16": [[3.0]] * 3,
        "fp16_offline-8": [[8.0]] * 3,
    }
    parts = [part([0], 1.0, 8, **rounds), *[part(None, 1.0, 8, **rounds)] * 2]
    two_mode_job = job(("fp32", "fp32"), ("fp16", "fp16"), modes=("host-to-host", "offline-8"))
    rows = verdict.results(two_mode_job, parts, np.array([0]), {})
    assert [(row["name"], row["mode"]) for row in rows] == [
        ("fp32", "host-to-host"),
        ("fp32", "offline-8"),
        ("fp16", "host-to-host"),
        ("fp16", "offline-8"),
    ]
    assert [row["ratio_to_fp32"] for row in rows[2:]] == [pytest.approx((4 / 3,) * 3), (2.0, 2.0, 2.0)]
    # 3 J over three queries of eight images in each of three processes
    assert rows[1]["energy"]["mj_per_image"] == pytest.approx(3000 / 72)


def test_speed_is_not_compared_when_predictions_disagree_with_host() -> None:
    fp32, int8 = [[4.0, 4.0]] * 3, [[8.0, 8.0]] * 3
    parts = [part([0, 1], 0.5, fp32=fp32, int8=int8), *[part(None, 1.5, fp32=fp32, int8=int8)] * 2]
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
