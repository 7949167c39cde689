"""The tables of suggested labels against random ones, on lines whose outcome is known."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.suggest.draws import DEFAULT, WAYS
from benchmarks.suggest.table import gains, markdown, of_students, saved


def line(target: str, seed: int, gain: float, config: str = "new") -> dict[str, Any]:
    random = [40.0 + seed, 50.0 + seed, 60.0 + seed, 70.0 + seed]
    scores = {"random": random, **{way: [points + gain for points in random[:3]] for way in WAYS}}
    worth = {"gain": 2.0, "low": 1.0, "high": 5.0, "true": 3.0 if seed else 9.0}
    return {"target": target, "seed": seed, "top1": scores, "balanced": scores, "worth": worth, "config": config}


LINES = [line(target, seed, gain) for target, gain in (("trash", 6.0), ("elpv", 4.0)) for seed in range(2)]


def test_gain_is_paired_by_target_and_seed() -> None:
    summary = gains(LINES, DEFAULT, 1)
    assert summary is not None
    assert summary.mean == pytest.approx(5.0)
    assert {target: cell.mean for target, cell in summary.by_target.items()} == {"trash": 6.0, "elpv": 4.0}


def test_claims_hold_or_fail_by_the_mean() -> None:
    text = markdown(LINES)
    assert "at 2 labels a class, +10 claimed: +5.0, **fails**" in text
    assert "at 5 labels a class, +5 claimed: +5.0, holds; targets wholly under -2: none" in text
    assert "holds the truth in 50% of them" in text


def test_target_that_is_wholly_under_fails_the_claim() -> None:
    text = markdown([*LINES, *(line("gtsrb", seed, -3.0) for seed in range(2)), line("cifar10", 0, 40.0)])
    assert "+11.8, **fails**; targets wholly under -2: gtsrb" in text


def test_tuning_packs_and_older_settings_are_left_out() -> None:
    text = markdown([line("pacs_art", 0, 50.0), line("trash", 7, 90.0, config="old"), *LINES])
    assert text == markdown(LINES)


def test_labels_saved_are_read_from_the_curve_of_random_draws() -> None:
    """With ten points more, random draws need the next budget: 5 / 2, 10 / 5 and 20 / 10 times the labels."""
    lines = [line("trash", seed, 10.0) for seed in range(2)]
    assert [saved(lines, number) for number in range(3)] == pytest.approx([2.5, 2.0, 2.0])


def test_students_are_compared_in_pairs_and_held_to_the_claim_at_five_labels() -> None:
    def of_draw(target: str, seed: int, gain: float) -> dict[str, Any]:
        scores = {"random": 50.0 + seed, DEFAULT: 50.0 + seed + gain}
        return {"target": target, "seed": seed, "top1": scores, "balanced": scores, "config": "new"}

    lines = [of_draw("trash", 0, 3.0), of_draw("trash", 1, 5.0), of_draw("elpv", 0, 2.0)]
    text = of_students(lines)
    assert "| trash | 2 | 50.5 | 54.5 | +4.0 [-8.7, +16.7] | +4.0 [-8.7, +16.7] |" in text
    assert "at 5 labels a class, +5 claimed: +3.0, **fails**" in text
    assert "+8.0, holds" in of_students([*lines, of_draw("elpv", 1, 22.0)])
