"""The records are frozen and documented; the errors have exit codes."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from edgedistill import measurements, records
from edgedistill.errors import EdgeDistillError, GateError, InputError
from edgedistill.records import Accuracy, SourceWeight, SourceWeights

RECORDS = [
    record
    for module in (records, measurements)
    for _, record in inspect.getmembers(module, dataclasses.is_dataclass)
    if record.__module__ == module.__name__
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_record_is_frozen_and_documented(record: type) -> None:
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert record.__doc__ and not record.__doc__.startswith(f"{record.__name__}(")


def test_errors_have_exit_codes_of_command_line() -> None:
    assert [kind("x").exit_code for kind in (EdgeDistillError, InputError, GateError)] == [1, 2, 3]
    assert str(InputError("what", "fix")) == "what; fix" and str(InputError("what")) == "what"
    assert (InputError("what", "fix").message, InputError("what", "fix").fix) == ("what", "fix")


def test_effective_sources_counts_equal_weights_as_one_each() -> None:
    def mixture(*weights: float) -> SourceWeights:
        return SourceWeights(
            metric="probe",
            probe_images=10,
            power=1.0,
            sources=tuple(
                SourceWeight(name=f"s{index}", weight=weight, scores={}) for index, weight in enumerate(weights)
            ),
        )

    assert mixture(0.25, 0.25, 0.25, 0.25).effective_sources == pytest.approx(4.0)
    assert mixture(1.0, 0.0, 0.0).effective_sources == 1.0
    assert mixture(0.5, 0.3, 0.2).effective_sources == pytest.approx(1 / (0.25 + 0.09 + 0.04))
    assert mixture().effective_sources == 0.0
    assert mixture(0.75, 0.25).alphas == {"s0": 0.75, "s1": 0.25}


def test_accuracy_by_score_of_recipe() -> None:
    accuracy = Accuracy(n=100, top1=0.9, top1_ci95=(0.8, 0.95), balanced=0.7, balanced_ci95=(0.6, 0.8))
    assert (accuracy.score("top1"), accuracy.interval("top1")) == (0.9, (0.8, 0.95))
    assert (accuracy.score("balanced"), accuracy.interval("balanced")) == (0.7, (0.6, 0.8))
