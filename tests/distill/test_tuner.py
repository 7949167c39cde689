"""Tuning for a teacher: which sources, and what is kept in the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from edgedistill.distill import tuner as tuner_module
from edgedistill.distill import tuning
from edgedistill.distill.tuner import Tuner
from edgedistill.errors import InputError
from edgedistill.recipe.schema import Augment
from tests.helpers.tiny import squares
from tests.helpers.tunable import untrained_network

LABELS = np.arange(60) % 2
LABELED = np.arange(20, 40)


@dataclass
class Store:
    """60 images, half of them of each class."""

    n: int = 60
    pixels_hash: str = "pixels"

    def resized(self, px: int) -> np.ndarray:
        assert px == 16
        return squares(LABELS, 5)


def tuner(folder: Path, **changes: Any) -> Tuner:
    networks = {"a": untrained_network(), "b": replace(untrained_network(), tunable=None), "c": untrained_network()}
    first = Tuner(
        network=networks.__getitem__,
        store=Store(),  # type: ignore[arg-type]
        rows=LABELED,
        labels_L=LABELS[LABELED],
        units_L=np.arange(20),
        classes=2,
        answered=np.arange(10, 60),
        settings=Augment(min_area=0.8, jitter=0.1),
        seed=1,
        cache=folder,
    )
    return replace(first, **changes)


def test_first_sources_that_can_be_tuned_are(tmp_path: Path) -> None:
    every = tuner(tmp_path)
    tuned = every.tune(["b", "c", "a"], 1)
    assert tuned is not None and list(tuned.columns) == list(tuned.features) == ["c (tuned)"] == list(every.networks)
    column, features_ND = tuned.columns["c (tuned)"], tuned.features["c (tuned)"]
    assert features_ND.shape[0] == 50 and column.probs_NC.shape == (50, 2)
    assert (column.probs_NC.argmax(axis=1) == LABELS[10:]).mean() >= 0.9
    assert (column.held_out_LC.argmax(axis=1) == LABELS[LABELED]).mean() >= 0.9
    assert column.predict(features_ND[:7]) == pytest.approx(column.probs_NC[:7], abs=1e-6)
    assert sorted(np.unique(tuned.folds_L)) == [0, 1, 2, 3, 4]
    both = tuner(tmp_path).tune(["b", "c", "a"], 2)
    assert both is not None and list(both.columns) == ["c (tuned)", "a (tuned)"]


def test_nothing_is_tuned_where_no_source_or_no_fold_is(tmp_path: Path) -> None:
    assert tuner(tmp_path).tune(["b"], 1) is None
    one_group = tuner(tmp_path, units_L=LABELS[LABELED])  # every class in one group: nothing can be left out
    assert one_group.tune(["a"], 1) is None and not one_group.networks
    # two labels of a class make two folds, in which its probes have one
    pair = tuner(tmp_path, labels_L=np.where(np.arange(20) < 2, 1, 0))
    assert pair.tune(["a"], 1) is None


def test_what_is_tuned_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[int] = []
    tune = tuner_module.tune

    def counted(*arguments: Any, **options: Any) -> Any:
        trainings.append(1)
        return tune(*arguments, **options)

    monkeypatch.setattr(tuner_module, "tune", counted)
    first, again = (tuner(tmp_path).tune(["a"], 1) for _ in range(2))
    assert first is not None and again is not None and len(trainings) == 1
    assert np.array_equal(first.columns["a (tuned)"].held_out_LC, again.columns["a (tuned)"].held_out_LC)
    assert np.array_equal(first.columns["a (tuned)"].probs_NC, again.columns["a (tuned)"].probs_NC)
    changes: list[dict[str, Any]] = [
        {"seed": 2},
        {"labels_L": 1 - LABELS[LABELED]},
        {"settings": Augment(min_area=0.7)},
        {"units_L": np.arange(20) // 2},
        {"rows": LABELED + 2},
    ]
    for count, change in enumerate(changes, start=2):
        assert tuner(tmp_path, **change).tune(["a"], 1) is not None and len(trainings) == count, change
    # the images that the teacher answers do not decide what is tuned
    assert tuner(tmp_path, answered=np.arange(60)).tune(["a"], 1) is not None and len(trainings) == 6


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_entry_is_tuned_again(tmp_path: Path, damage: str) -> None:
    first = tuner(tmp_path).tune(["a"], 1)
    (entry,) = (tmp_path / "tuned").glob("*.safetensors")
    content = entry.read_bytes()
    entry.write_bytes({"cut": content[:-100], "empty": b"", "other": save({"x": torch.zeros(2)})}[damage])
    again = tuner(tmp_path).tune(["a"], 1)
    assert first is not None and again is not None and entry.read_bytes() == content
    assert np.array_equal(first.columns["a (tuned)"].probs_NC, again.columns["a (tuned)"].probs_NC)


def test_features_of_another_tuned_net_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tuner(tmp_path).tune(["a"], 1)
    (entry,) = (tmp_path / "tuned").glob("*.safetensors")
    entry.unlink()
    monkeypatch.setattr(tuning, "RATE", 0.01)  # stands for another machine, whose rounding trains another net
    again = tuner(tmp_path).tune(["a"], 1)
    assert first is not None and again is not None
    assert np.abs(first.features["a (tuned)"] - again.features["a (tuned)"]).max() > 1e-3


def test_source_that_cannot_be_tuned_after_all_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise InputError("its features are not finite")

    monkeypatch.setattr(tuner_module, "tune", refuse)
    every = tuner(tmp_path)
    assert every.tune(["a"], 1) is None and not every.networks
    assert "a is not tuned: its features are not finite" in capsys.readouterr().err


def test_interrupted_tuning_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tuner_module, "tune", interrupted)
        tuner(tmp_path).tune(["a"], 1)
    assert tuner(tmp_path).tune(["a"], 1) is not None
