"""Answers of the folds' students: made anew for other int8 settings, and taken from the graph that ships."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgedistill.export.guard import TRAINED
from edgedistill.labels.unknown import Aim
from edgedistill.recipe.schema import Export, Quantize
from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.directory import Run
from edgedistill.steps import candidate, folds, quantize, unknown
from edgedistill.steps.context import Context


@pytest.mark.parametrize("changed", [{"method": "entropy"}, {"calibration_images": 7}])
def test_answers_in_int8_depend_on_how_it_is_made(changed: dict[str, Any]) -> None:
    def key(**settings: Any) -> str:
        recipe: Any = SimpleNamespace(quantize=Quantize(**settings), export=Export())
        context: Any = SimpleNamespace(recipe=recipe)
        return candidate.answered_by(context)

    assert key(**changed) != key() == key(max_drop=3.0, min_speedup=2.0)


def test_witnesses_that_trained_are_marked(tmp_path: Path) -> None:
    """With folds and few images without a label those that trained are compared on, too."""
    run = Run(path=tmp_path)
    (tmp_path / "folds").mkdir()
    save_arrays(artifacts.FOLD_ANSWERS.path_in(run), labels=np.arange(8) % 2, fp32=np.eye(2)[np.arange(8) % 2])
    splits = SimpleNamespace(protocol="folds", n_test=0, witness_rows=np.array([1, 4, 6]), reserve_rows=np.array([4]))
    splits.units_N = np.array([0, 10, 11, 12, 13, 14, 13])
    context: Any = SimpleNamespace(splits=splits, shipped=SimpleNamespace(run=run))
    context.compared_images = lambda px: (np.zeros((3, px, px, 3), dtype=np.uint8), np.full(3, -1))
    witnesses = quantize.witnesses(context, 8)
    assert witnesses.labels_N.tolist() == [TRAINED, -1, TRAINED] and witnesses.temperature is not None
    assert witnesses.units_N is not None and witnesses.units_N.tolist() == [10, 13, 13]


@pytest.mark.parametrize("changed", ["picture", "label", "unlabeled"])
def test_answers_depend_on_pixels_and_labels(changed: str) -> None:
    """A picture that is replaced in place keeps its row and its fold."""

    def key(change: str) -> str:
        hashes = np.array([b"aa", b"bb", b"cc", b"dd"])
        labels_N = np.array([0, 1])
        if change == "label":
            labels_N[0] = 1
        hashes[{"picture": 0, "unlabeled": 3}.get(change, 2)] = b"ee" if change in {"picture", "unlabeled"} else b"cc"
        test = SimpleNamespace(store=SimpleNamespace(hashes=hashes[:2]), labels_N=labels_N)
        splits = SimpleNamespace(open_test=lambda: test, train=SimpleNamespace(hashes=hashes))
        context: Any = SimpleNamespace(splits=splits, checkpoint=SimpleNamespace(sha256="student"))
        return folds.answers_key(context, np.arange(2), np.array([3]), int8=False)

    assert key(changed) != key("nothing")


@pytest.mark.parametrize("default", ["fp32", "int8-cpu"])
def test_rule_is_that_of_the_graph_that_ships(tmp_path: Path, default: str) -> None:
    """Int8 that the guard refused has answers at random here."""
    generator, labels_N = np.random.default_rng(0), np.arange(100) % 4
    fp32_NC, int8_NC = 6 * np.eye(4)[labels_N] + generator.normal(size=(100, 4)), generator.normal(size=(100, 4))
    run = Run(path=tmp_path)
    (tmp_path / "folds").mkdir()
    save_arrays(artifacts.FOLD_ANSWERS.path_in(run), rows=labels_N, labels=labels_N, fp32=fp32_NC, int8=int8_NC)
    models = [SimpleNamespace(name="fp32", precision="fp32"), SimpleNamespace(name="int8-cpu", precision="int8")]
    context: Any = SimpleNamespace(shipped=SimpleNamespace(run=run), models=models, default_graph=default)
    context.splits = SimpleNamespace(units_N=np.arange(4) // 2)
    context.fold_graph = lambda answers: Context.fold_graph(context, answers)
    fit = unknown.from_folds(context, Aim(coverage=0.9))
    expected_NC = {"fp32": fp32_NC, "int8-cpu": int8_NC}[default]
    assert (fit.logits_NC == expected_NC).all() and fit.rules["fp32"] == fit.scored
    assert (fit.scored.temperature < 2.0) == (default == "fp32")
    assert (fit.units_N == labels_N // 2).all(), "those of the scored rows"
