"""What the report says against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.agent import verdict
from edgedistill.agent.job import Job, Model


def test_a_still_machine_is_not_called_noisy() -> None:
    assert verdict.noise([1.0, 1.1, 1.2] * 100) == []


def test_noise_names_the_ratio_and_the_remedy() -> None:
    # p50 = 1.4, min = 1.0: 1.40 > 1.3; p99 = 1.4
    (warning,) = verdict.noise([1.0] * 2 + [1.4] * 98)
    assert warning.startswith("noisy: p50/min is 1.40 (at most 1.3);")
    assert "--set bench.seconds" in warning
    # two slow in a hundred: p99 lies between 1 and 9, well above 1.5 times p50
    (warning,) = verdict.noise([1.0] * 97 + [9.0] * 3)
    assert warning.startswith("noisy: p99/p50 is 9.00 (at most 1.5);")


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


def job(*models: tuple[str, str]) -> Job:
    some = Path("x")
    entries = tuple(Model(name, some, "0" * 64, precision) for name, precision in models)
    return Job("onnxruntime-cpu", entries, some, some, {}, 1, 2, 2, 8, 0.1, 4)


def part(predicted: list[int] | None, **rounds: list[list[float]]) -> dict[str, Any]:
    models = {name: {"warmup_ms": [9.0], "settled": name != "int8", "rounds_ms": cells, "predicted": predicted}
              for name, cells in rounds.items()}  # fmt: skip
    return {"models": models}


def test_results_put_the_processes_together() -> None:
    fp32, int8 = [[4.0, 4.0], [4.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]]
    parts = [part([0, 1, 1, 0], fp32=fp32, int8=int8), part(None, fp32=fp32, int8=int8)]
    labels_N, host = np.array([0, 1, 0, 0, 1]), {"int8": np.array([0, 1, 1, 1, 1])}
    first, second = verdict.results(job(("fp32", "fp32"), ("int8", "int8")), parts, labels_N, host)
    assert first["samples_ms"] == [4.0] * 8
    assert first["cells"] == [[0, 0, 2], [0, 1, 2], [1, 0, 2], [1, 1, 2]]
    assert (first["ratio_to_fp32"], first["agreement_with_host"], first["warnings"]) == (None, None, [])
    assert second["ratio_to_fp32"] == (2.0, 2.0, 2.0)
    assert (second["accuracy"]["n"], second["accuracy"]["top1"]) == (4, 0.75)
    assert second["agreement_with_host"] == 0.75
    assert [one.split()[0] for one in second["warnings"]] == ["warm-up", "answers"]


def test_without_fp32_there_is_nothing_to_compare_with() -> None:
    cells = [[2.0, 2.0], [2.0, 2.0]]
    (only,) = verdict.results(job(("int8", "int8")), [part([0], int8=cells)], np.array([0]), {})
    assert only["ratio_to_fp32"] is None
    assert not any("fp32" in warning for warning in only["warnings"])
