"""Runs with headless sources: weighed and learned from where features are enough, else left out, and said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from edgedistill import session
from edgedistill.records import Checkpoint, SourceWeights
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from tests.helpers import miniature, tars
from tests.helpers.miniature import CommandResult, Project

FIRST = {"name": "first", "kind": "timm", "model": "resnet10t", "pretrained": False, "input_px": 32}
SECOND = {**FIRST, "name": "second", "seed": 1}
# published without a classifier
NET = {"name": "net", "kind": "timm", "model": "convnextv2_pico.fcmae", "pretrained": False, "input_px": 32}
GRAPH = {"name": "graph", "kind": "onnx", "file": "features.onnx", "headless": True}
ADAPTED = {"name": "adapted", "lam": 0.5}


def write(root: Path, *sources: dict[str, Any], metric: str = "parc", **distill: Any) -> Project:
    """Write the miniature with these sources and `distill` settings, and a graph whose features tell the classes apart.

    The squared means of each column and row: stripes vary along one of the two.
    """
    recipe = yaml.safe_load(miniature.RECIPE)
    recipe |= {"sources": list(sources), "search": {"trials": 1, "steps": 1}, "baseline": False}
    recipe["weigh"] |= {"metric": metric, "power": 1}
    recipe["distill"] |= {"steps": 4, "batch_unlabeled": 4} | distill
    recipe["student"]["families"]["micro"]["width"] = 4
    project = miniature.write(root, yaml.safe_dump(recipe))
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["columns"], axes=[2], keepdims=0),
        helper.make_node("ReduceMean", ["images"], ["rows"], axes=[3], keepdims=0),
        helper.make_node("Concat", ["columns", "rows"], ["means"], axis=2),
        helper.make_node("Mul", ["means", "means"], ["squares"]),
        helper.make_node("Flatten", ["squares"], ["features"]),
    ]
    body = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, 32, 32])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", 192])],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(body, opset_imports=[opset], ir_version=8), project.root / "features.onnx")
    return project


def train(project: Project) -> CommandResult:
    outcome = miniature.call("train", project.recipe, "--runs", project.runs)
    assert outcome.code == 0, outcome.err
    return outcome


def weights(project: Project) -> SourceWeights:
    return artifacts.WEIGHTS.read(Run(path=project.run))


def trained(project: Project) -> Checkpoint:
    return artifacts.RESULT.read(Run(path=project.run))


def lines(project: Project) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project.run / "distill/metrics.jsonl").read_text().splitlines()]


def student_bytes(project: Project) -> bytes:
    return (project.run / "distill/student.safetensors").read_bytes()


def report(project: Project) -> str:
    """The report in the terminal, on one line."""
    return " ".join(miniature.call("report", project.run).out.split())


def slow(name: str) -> Any:
    """A variant of the slow tier."""
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("teacher", ["stacked", slow("selftrained"), slow("similarity")])
def test_teacher_learns_from_headless_sources(tmp_path: Path, teacher: str) -> None:
    project = write(tmp_path, FIRST, NET, GRAPH, method=ADAPTED, teacher=teacher)
    outcome = train(project)
    record = weights(project)
    assert record.features_only == ("net", "graph") and sum(record.alphas.values()) == pytest.approx(1.0)
    assert all(list(source.scores) == ["parc"] for source in record.sources)
    result = trained(project).teacher
    assert result is not None and sum(result.weights.values()) == pytest.approx(1.0)
    headless_share = result.weights.get("net", 0.0) + result.weights.get("graph", 0.0)
    assert headless_share > 0.0 and (teacher == "similarity" or len(result.weights) == 3)
    assert set(lines(project)[-1]["terms"]) == {"labels", "teacher"}
    facts = artifacts.SOURCES.read(Run(path=project.run))
    assert [facts[name].get("features_only") for name in ("first", "net", "graph")] == [None, True, True]
    caches = (project.runs / ".cache/sources").iterdir()
    arrays = sorted(sorted(file.name for file in entry.glob("*.npy")) for entry in caches if entry.is_dir())
    assert arrays == [["features.npy"], ["features.npy"], ["features.npy", "probs.npy"]]
    assert "net, graph: features only, no classes" in outcome.err and "leaves out" not in outcome.err
    assert "net, graph: features only, no classes" in report(project) and "leaves out" not in report(project)
    second_run = train(project)
    assert second_run.err.count("up to date") >= 3


def test_headless_sources_alone_are_enough_for_auto(tmp_path: Path) -> None:
    project = write(tmp_path, NET, GRAPH, method="auto")
    train(project)
    result = trained(project)
    assert result.method == "adapted" and result.teacher is not None and set(result.teacher.weights) == {"net", "graph"}


@pytest.mark.parametrize("method", ["weighted", slow("equal"), slow("nearest"), slow("random")])
def test_method_of_classes_trains_the_same_student_without_headless_sources(tmp_path: Path, method: str) -> None:
    # LEEP needs classes: the weights of the others are those without the headless source, to the bit
    both = write(tmp_path / "both", FIRST, GRAPH, SECOND, metric="leep", method=method)
    without = write(tmp_path / "without", FIRST, SECOND, metric="leep", method=method)
    outcome, _ = train(both), train(without)
    assert weights(both).alphas == {**weights(without).alphas, "graph": 0.0}
    assert lines(both)[-1]["terms"] == lines(without)[-1]["terms"]
    assert student_bytes(both) == student_bytes(without)
    for text in (" ".join(outcome.err.split()), report(both)):
        assert "graph: features only, no classes; leep needs classes, so the weight is 0" in text
        assert f"{method} learns from the sources' classes and leaves out graph" in text
    assert "features only" not in report(without)


def test_shares_of_the_others_are_divided_by_their_sum(tmp_path: Path) -> None:
    both = write(tmp_path / "both", FIRST, GRAPH, SECOND, method="weighted")
    without = write(tmp_path / "without", FIRST, SECOND, method="weighted")
    train(both)
    train(without)
    # PARC weighs the headless source, too; what is left of the weights is the same but for rounding
    assert weights(both).alphas["graph"] > 0.0
    assert weights(both).class_alphas == pytest.approx(weights(without).alphas)
    for line, expected in zip(lines(both), lines(without), strict=True):
        assert line["terms"] == pytest.approx(expected["terms"], rel=1e-4)


def test_combined_learns_from_headless_sources_through_its_teacher(tmp_path: Path) -> None:
    project = write(tmp_path, FIRST, SECOND, GRAPH, method="combined", teacher="stacked")
    outcome = train(project)
    assert set(lines(project)[-1]["terms"]) == {"labels", "teacher", "source/first", "source/second"}
    teacher = trained(project).teacher
    assert teacher is not None and teacher.weights["graph"] > 0.0
    assert "combined learns from the sources' classes and leaves out graph, but not in its teacher" in outcome.err


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        (
            (FIRST, GRAPH),
            {"method": {"name": "single", "source": "graph"}},
            "distill.method: single needs a source's classes, and there are none in graph; name a source with classes "
            "(first), or use method auto or adapted, which learn from features",
        ),
        (
            (NET, GRAPH),
            {"method": "weighted"},
            "distill.method: weighted needs the sources' classes, and no source has any; use method auto or adapted, "
            "which learn from features",
        ),
        (
            (GRAPH,),
            {"method": "combined"},
            "distill.method: combined needs the sources' classes, and no source has any; use method auto or adapted, "
            "which learn from features",
        ),
        (
            (GRAPH,),
            {"method": "auto", "metric": "nce"},
            "weigh.metric: nce needs the sources' classes, and no source has any; use a metric that needs features "
            "alone, such as probe, or add a source with classes",
        ),
    ],
    ids=["single", "weighted", "combined", "metric"],
)
def test_recipe_that_needs_absent_classes_is_refused(
    tmp_path: Path, verb: str, sources: tuple[dict[str, Any], ...], settings: dict[str, Any], message: str
) -> None:
    project = write(tmp_path, *sources, **settings)
    more = ("--runs", project.runs) if verb == "train" else ()
    outcome = miniature.call(verb, project.recipe, *more)
    assert outcome.code == 2 and outcome.err.strip().removeprefix(f"{project.recipe}: ") == message
    assert not project.runs.exists()


def test_single_of_a_source_with_classes_is_accepted(tmp_path: Path) -> None:
    project = write(tmp_path, GRAPH, FIRST, method={"name": "single", "source": "first"})
    train(project)
    assert set(lines(project)[-1]["terms"]) == {"labels", "source/first"}


def test_check_names_headless_sources(tmp_path: Path) -> None:
    project = write(tmp_path, FIRST, GRAPH, metric="leep", method="weighted")
    outcome = miniature.call("check", project.recipe)
    assert outcome.code == 0 and outcome.out.endswith(f"{project.recipe}: ready to run\n")
    assert outcome.err.splitlines() == [
        "graph: features only, no classes; leep needs classes, so the weight is 0",
        "weighted learns from the sources' classes and leaves out graph",
    ]
    adapted = miniature.call("check", project.recipe, "--set", "distill.method=adapted", "--set", "weigh.metric=probe")
    assert adapted.code == 0 and adapted.err == "graph: features only, no classes\n"


def test_teacher_labels_shards_with_headless_sources(tmp_path: Path) -> None:
    project = tars.add_shards(write(tmp_path, FIRST, GRAPH, method=ADAPTED, teacher="stacked"))
    train(project)
    result = trained(project).teacher
    assert result is not None and result.weights["graph"] > 0.0 and np.isfinite(lines(project)[-1]["loss"])
    # an entry of each source for the train store and for each of four shards
    assert len(list((project.runs / ".cache/sources").glob("*/features.npy"))) == 10
    assert len(list((project.runs / ".cache/sources").glob("*/probs.npy"))) == 5


def test_streamed_pseudo_labels_leave_out_headless_sources(tmp_path: Path) -> None:
    both, without = (
        tars.add_shards(write(tmp_path / name, *sources, metric="leep", method="equal"))
        for name, sources in (("both", (FIRST, GRAPH, SECOND)), ("without", (FIRST, SECOND)))
    )
    train(both)
    train(without)
    assert student_bytes(both) == student_bytes(without)


def test_killed_training_resumes_with_a_headless_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgedistill.distill import loop

    settings: dict[str, Any] = {"method": ADAPTED, "teacher": "stacked", "steps": 8, "checkpoint_every": 2}
    complete, broken = (write(tmp_path / name, FIRST, GRAPH, **settings) for name in ("complete", "broken"))
    train(complete)
    record_step = loop.record_step

    def killed(*arguments: Any, **keywords: Any) -> None:
        record_step(*arguments, **keywords)
        if keywords["entry"].step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "record_step", killed)
        assert miniature.call("train", broken.recipe, "--runs", broken.runs).code == 130
    assert "weigh      up to date" in train(broken).err
    assert student_bytes(broken) == student_bytes(complete)


def test_weights_that_name_no_headless_source_are_read_by_the_networks(tmp_path: Path) -> None:
    project = write(tmp_path, FIRST, GRAPH, method="weighted")
    train(project)
    # as in a run weighed before sources could be headless
    artifacts.WEIGHTS.write(Run(path=project.run), replace(weights(project), features_only=()))
    context = session.reopen(project.run, {})
    assert set(context.weights.alphas) == {"first", "graph"} and context.class_alphas == {"first": 1.0}
    assert list(context.material(32).source_probs) == ["first"]
