"""recipes/cub.yaml runs, with three birds, small untrained nets and a few steps."""

from __future__ import annotations

from pathlib import Path

from edgedistill.records import Checkpoint, SourceWeights
from edgedistill.run.directory import find_run
from edgedistill.run.files import read_json, read_record
from tests.helpers import miniature
from tests.helpers.paths import ROOT
from tests.helpers.trees import BIRDS, cub_tree

RECIPE = ROOT / "recipes/cub.yaml"
SMALL = (
    "data.labels_per_class=4",
    "data.store_px=32",
    "sources=[{name: a, kind: timm, model: resnet10t, pretrained: false, input_px: 32}, "
    "{name: b, kind: timm, model: resnet10t, pretrained: false, input_px: 32, seed: 1}]",
    "student.families={micro: {width: 4, input_px: 32}}",
    "search={trials: 1, steps: 2}",
    "distill.steps=4",
    "distill.batch_labeled=6",
    "distill.batch_unlabeled=4",
    "weigh={metric: parc, also: [], bootstrap: 3}",
)


def test_cub_on_three_birds(tmp_path: Path) -> None:
    root = cub_tree(tmp_path / "CUB_200_2011", train=6, test=2)
    sets = [part for setting in (f"data.root={root}", *SMALL) for part in ("--set", setting)]
    assert miniature.call("check", RECIPE, *sets).code == 0
    completed = miniature.call("train", RECIPE, *sets, "--runs", tmp_path / "runs")
    assert completed.code == 0, completed.err
    run = find_run(tmp_path / "runs/latest")
    checkpoint = read_record(run / "distill/result.json", Checkpoint)
    assert (checkpoint.classes, checkpoint.test.n, checkpoint.steps) == (BIRDS, 6, 4)
    weights = read_record(run / "weigh/weights.json", SourceWeights)
    assert sorted(weights.alphas) == ["a", "b"]
    facts = read_json(run / "data.json")
    # of six images a class four are labeled, and ceil(0.2 * 4) of them are val
    assert (facts["labeled"], facts["val"], facts["unlabeled"]) == (9, 3, 6)
