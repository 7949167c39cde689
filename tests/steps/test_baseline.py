"""What distilling bought: the comparison with labels alone, and the choice of the student that ships."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgedistill import check
from edgedistill.agent import metrics
from edgedistill.distill.methods import METHODS
from edgedistill.labels.prior import Prior
from edgedistill.recipe import presets
from edgedistill.recipe.file import read_recipe
from edgedistill.recipe.section import Choice
from edgedistill.records import Gain
from edgedistill.report import bought, facts
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.run.files import read_json, write_json
from edgedistill.steps import baseline
from edgedistill.steps.context import Context
from tests.helpers import miniature
from tests.helpers.miniature import Project
from tests.helpers.report_runs import make_run
from tests.steps.test_folds import LABELS, few_labels

WORSE, UNCLEAR, BETTER = ((-4.0, -7.0, -1.0), (-4.0, -9.0, 1.0), (4.0, 1.0, 7.0))


def gain(triple: tuple[float, float, float]) -> Gain:
    points, low, high = triple
    return Gain(points=points, low=low, high=high, n=100)


def choice(method: dict[str, Any], folds: bool, measured: Gain, on_val: Gain | None = None) -> tuple[str, str]:
    recipe = SimpleNamespace(distill=SimpleNamespace(method=Choice(**method)))
    splits = SimpleNamespace(folds=object() if folds else None)
    return baseline.choose(cast(Context, SimpleNamespace(recipe=recipe, splits=splits)), measured, on_val)


@pytest.mark.parametrize(
    ("folds", "measured", "on_val", "ships", "why"),
    [
        (True, WORSE, None, "labels alone", "better out of fold, by 4.0 points [1.0, 7.0]"),
        (True, UNCLEAR, None, "distilled", "no gain over labels alone is shown: -4.0 points [-9.0, 1.0]"),
        (True, BETTER, None, "distilled", "distilling gains 4.0 points [1.0, 7.0]"),
        (False, BETTER, WORSE, "labels alone", "on the 100 images of val"),
        (False, WORSE, UNCLEAR, "distilled", "test may not choose and the 100 images of val do not settle it"),
        (False, WORSE, BETTER, "distilled", "test may not choose"),
        (False, WORSE, None, "distilled", "there is no val"),
    ],
)
def test_auto_ships_labels_alone_only_where_they_are_clearly_better_out_of_fold_or_on_val(
    folds: bool, measured: Any, on_val: Any, ships: str, why: str
) -> None:
    chosen, sentence = choice(presets.AUTO["method"], folds, gain(measured), gain(on_val) if on_val else None)
    assert chosen == ships and why in sentence


def test_auto_may_leave_its_defaults_out() -> None:
    written = presets.AUTO["method"]
    assert METHODS[written["name"]].loss.__kwdefaults__["sharpen"] == written["sharpen"]
    without = {name: option for name, option in written.items() if name != "sharpen"}
    assert choice(without, True, gain(WORSE)) == choice(written, True, gain(WORSE))
    assert choice({**written, "lam": 0.5}, True, gain(WORSE))[0] == "distilled"


def test_a_method_that_the_recipe_names_ships() -> None:
    chosen, sentence = choice({"name": "weighted"}, True, gain(WORSE))
    assert chosen == "distilled" and "weighted ships since the recipe names it" in sentence


@pytest.mark.parametrize("unlabeled", [400, 50])
def test_probe_is_told_the_prior(unlabeled: int) -> None:
    """Of classes that overlap, labeled alike and seen at 9 to 1; 50 images are too few to match its answers to that."""
    generator, labels_L, shares_C = np.random.default_rng(0), np.arange(40) % 2, np.array([0.9, 0.1])
    labels_N = np.concatenate([labels_L, (generator.random(unlabeled) > 0.9).astype(np.int64)])
    seen_N = (generator.random(2000) > 0.9).astype(np.int64)
    features_ND, seen_ND = (
        np.stack([1.0 + 0 * drawn_N, drawn_N + generator.normal(0, 0.7, len(drawn_N))], axis=1).astype(np.float32)
        for drawn_N in (labels_N, seen_N)
    )
    splits = SimpleNamespace(labeled_rows=np.arange(40), labeled_labels=labels_L, classes=("a", "b"))
    splits.unlabeled_rows, splits.units_N = np.arange(40, len(labels_N)), np.arange(len(labels_N))
    context: Any = SimpleNamespace(splits=splits, weights=SimpleNamespace(alphas={"one": 1.0}), prior=None)
    context.source_outputs = {"one": SimpleNamespace(features_ND=features_ND)}
    ignorant_N = baseline.probe_answers(context, seen_ND)
    context.prior = Prior(shares_C=shares_C, score="top1")
    told_N = baseline.probe_answers(context, seen_ND)
    assert (told_N == 0).mean() > (ignorant_N == 0).mean() + 0.1
    assert (told_N == seen_N).mean() > (ignorant_N == seen_N).mean() + 0.05
    context.prior = Prior(shares_C=shares_C, score="balanced")
    aimed_N = baseline.probe_answers(context, seen_ND)
    assert metrics.balanced(seen_N, aimed_N)[0] > metrics.balanced(seen_N, told_N)[0], "the score wants equal shares"


def test_workers_that_share_folds_train_none_and_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)

    def context_of(storage: str | None) -> Any:
        recipe = SimpleNamespace(baseline=True, search=SimpleNamespace(storage=storage))
        return SimpleNamespace(run=run, recipe=recipe)

    shared = context_of("postgresql://host/students")
    assert baseline.inputs(shared) == {}, "without folds there is one"
    write_json(run / "data.json", read_json(run / "data.json") | {"protocol": "folds"})
    baseline.work(shared)
    assert "none: with search.storage each worker has the files of its own folds alone" in capsys.readouterr().err
    (block,) = bought.blocks(replace(facts.read(run), recipe={"distill": {"method": {"name": "weighted"}}}))
    assert "method: auto cannot fall back to labels alone" in block.lines[0] and "not run yet" not in block.lines[0]
    assert baseline.inputs(shared) != {} == baseline.inputs(context_of(None)), "without the storage it is trained"


def test_same_student_is_trained_on_labels_alone(finished_project: Project) -> None:
    run = Run(path=finished_project.run)
    alone = artifacts.labels_alone(run)
    record, other = artifacts.RESULT.read(run), artifacts.RESULT.read(alone)
    assert (other.method, other.spec, other.steps) == ("transfer", record.spec, record.steps)
    assert list(artifacts.METRICS.read(alone)[-1]["terms"]) == ["labels"]
    assert other.sha256 != record.sha256 and artifacts.shipped(run) == run
    document = read_recipe(finished_project.recipe)
    context = Context(recipe=check.load(document), base=document.base, run=run)
    distill, on_labels = context.recipe.distill, context.labels_alone().recipe.distill
    assert on_labels.batch_labeled == distill.batch_labeled + distill.batch_unlabeled, "as many images a step"
    compared, answers = artifacts.BASELINE.read(run), artifacts.BASELINE_ANSWERS.read(run)
    assert (compared.distilled, compared.labels_alone) == (record.test, other.test) and compared.source == "first"
    for name, shown in (("labels_alone", compared.over_labels_alone), ("probe", compared.over_probe)):
        drop = metrics.drop(answers["labels"], answers["distilled"], answers[name])
        assert shown is not None and [shown.points, shown.low, shown.high] == pytest.approx(100 * np.array(drop))
    report = json.loads((finished_project.run / "report.json").read_text(encoding="utf-8"))
    assert report["baseline"]["over_labels_alone"] == asdict(compared.over_labels_alone)
    assert "linear probe of first" in (finished_project.run / "report.html").read_text(encoding="utf-8")


def test_recipe_may_leave_it_out(project_copy: Project) -> None:
    before = artifacts.RESULT.read(Run(path=project_copy.run)).sha256
    arguments = ("train", project_copy.recipe, "--runs", project_copy.runs)
    completed = miniature.call(*arguments, "--set", "baseline=false")
    assert completed.code == 0, completed.err
    run = Run(path=project_copy.run)
    assert "distill    up to date" in completed.err and artifacts.RESULT.read(run).sha256 == before
    assert artifacts.BASELINE.find(run) is None
    again = miniature.call(*arguments)
    assert again.code == 0 and artifacts.BASELINE.find(run) is not None
    assert again.err.count("distill    up to date") == 2, "the student trained on labels alone is still there"


def ship_labels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "choose", lambda *_arguments: ("labels alone", "for this test"))


def test_labels_alone_ship_as_any_student_does(project_copy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(path=project_copy.run)
    student = artifacts.RESULT.read(artifacts.labels_alone(run)).sha256
    assert artifacts.EXPORTED.read(run)[0].parent_sha256 != student
    for path in (run / "baseline/baseline.json", run / "baseline/answers.npz"):
        path.unlink()
    ship_labels_alone(monkeypatch)
    completed = miniature.call("run", project_copy.recipe, "--runs", project_copy.runs, "--set", "bench.samples=3")
    assert completed.code == 0, completed.err
    assert artifacts.EXPORTED.read(run)[0].parent_sha256 == student
    report = json.loads((project_copy.run / "report.json").read_text(encoding="utf-8"))
    assert report["result"]["method"] == "transfer" and report["baseline"]["why"] == "for this test"
    part = artifacts.labels_alone(run)
    assert artifacts.LADDER.read(run).rungs[0].accuracy == artifacts.RESULT.read(part).test
    artifacts.DATA.write(part, {**artifacts.DATA.read(part), "data_hash": "of other pictures"})
    refused = miniature.call("export", project_copy.run)
    assert refused.code == 2 and "trained on other data than the run; remove " in refused.err
    (run / artifacts.BASELINE.path).unlink()
    assert miniature.call("train", project_copy.recipe, "--runs", project_copy.runs).code == 0
    assert artifacts.DATA.read(part) == artifacts.DATA.read(run)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_labels_alone_ship_from_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship_labels_alone(monkeypatch)
    project = few_labels(tmp_path)
    short = ("--set", "search.trials=1", "--set", "search.steps=1", "--set", "distill.steps=6")
    completed = miniature.call("run", project.recipe, "--runs", project.runs, *short)
    assert completed.code == 0, completed.err
    run = Run(path=project.run)
    alone, record = artifacts.labels_alone(run), artifacts.BASELINE.read(run)
    own, kept = artifacts.FOLD_ANSWERS.read(alone), artifacts.FOLD_ANSWERS.read(run)
    assert (own["rows"] == kept["rows"]).all() and (own["fp32"] != kept["fp32"]).any()
    assert record.labels_alone == artifacts.OUT_OF_FOLD.read(alone).fp32 == artifacts.RESULT.read(alone).test
    assert record.over_labels_alone.n == record.labels_alone.n == LABELS
    assert artifacts.EXPORTED.read(run)[0].parent_sha256 == artifacts.RESULT.read(alone).sha256
    assert artifacts.LADDER.read(run).rungs[0].accuracy == record.labels_alone
    before = {name: (run / name).read_bytes() for name in ("baseline/baseline.json", "baseline/answers.npz")}
    for name in ("baseline/baseline.json", "baseline/folds/3/distill/result.json", "baseline/folds/4/answers.npz"):
        (run / name).unlink()
    assert miniature.call("train", project.recipe, "--runs", project.runs, *short).code == 0
    assert {name: (run / name).read_bytes() for name in before} == before


def test_record_that_is_broken_is_one_line(project_copy: Project) -> None:
    (project_copy.run / artifacts.BASELINE.path).write_text('{"ships": "both"}', encoding="utf-8")
    completed = miniature.call("report", project_copy.run)
    assert completed.code == 2 and "baseline.json" in completed.err and len(completed.err.splitlines()) <= 2
