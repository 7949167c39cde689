"""One of everything that can be added, from outside the package: an entry in a registry is enough (CONTRIBUTING.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from PIL import Image

from edgedistill import pipeline, session
from edgedistill.agent import backends
from edgedistill.data.datasets import DATASETS, DatasetKind
from edgedistill.data.listing import Items, Listing, hash_lines
from edgedistill.distill.methods import METHODS, Alphas, Batch, Method, Terms, Unit, label_loss
from edgedistill.distill.teachers import TEACHERS, Teacher, TeacherKind
from edgedistill.labels.suggestions import STRATEGIES, Pool, Strategy, suggested
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.similarity.metrics import METRICS, Metric, ceiling_one, symmetric
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step
from edgedistill.students.families import FAMILIES, Blueprint
from tests.helpers import miniature
from tests.helpers.miniature import Project


def train(tmp_path: Path, replaced: dict[str, Any] | None = None, **changed: dict[str, Any]) -> Run:
    """The miniature recipe with some sections replaced and some keys of others changed, trained."""
    recipe = {**yaml.safe_load(miniature.RECIPE), **(replaced or {})}
    for name, keys in changed.items():
        recipe[name] = {**recipe[name], **keys}
    project = miniature.write(tmp_path, yaml.safe_dump(recipe))
    answer = miniature.call("train", project.recipe, "--runs", project.runs)
    assert answer.code == 0, answer.err
    return Run(path=project.run)


def halved(batch: Batch, alphas: Alphas, *, lam: Unit = 0.5) -> Terms:
    """Half of the label loss."""
    return {"labels": lam * label_loss(batch)}


def test_method_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(METHODS, "halved", Method(loss=halved))
    run = train(tmp_path, distill={"method": {"name": "halved", "lam": 0.25}, "steps": 2})
    assert artifacts.RESULT.read(run).method == "halved"
    assert list(artifacts.METRICS.read(run)[-1]["terms"]) == ["labels"]


def test_metric_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def spread(features_ND: np.ndarray, probs_NK: np.ndarray, labels_N: np.ndarray, *, scale: float = 1.0) -> float:
        """A constant score."""
        return 0.5 * scale

    monkeypatch.setitem(METRICS, "spread", Metric(score=spread, ceiling=ceiling_one, bounds=symmetric(ceiling_one)))
    run = train(tmp_path, weigh={"metric": {"name": "spread", "scale": 0.5}}, distill={"steps": 2})
    weights = artifacts.WEIGHTS.read(run)
    assert weights.metric == "spread" and weights.sources[0].scores["spread"].score == 0.25


def test_data_set_kind_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stripes(base: Path, *, count: int = 60) -> Listing:
        """Pictures that are drawn, not read."""
        names = [f"{index:03d}" for index in range(count)]
        labels_N = np.arange(count, dtype=np.int64) % 2

        def load(index: int) -> Image.Image:
            return miniature.picture(bool(index % 2), index)

        items = Items(names=names, labels_N=labels_N, load=load)
        fingerprint = hash_lines(["stripes", str(count)])
        return Listing(classes=("lying", "upright"), train=items, test=None, licence="none", fingerprint=fingerprint)

    monkeypatch.setitem(DATASETS, "stripes", DatasetKind(listing=stripes))
    replaced = {"data": {"kind": "stripes", "count": 50, "labels_per_class": 10}}
    run = train(tmp_path, replaced, distill={"steps": 2})
    assert artifacts.DATA.read(run)["kind"] == "stripes"


def test_student_family_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def plain(*, channels: int = 4) -> Blueprint:
        """One convolution."""

        def build() -> Any:
            from torch import nn

            net = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
            net.num_features = channels
            return net

        return Blueprint(build=build, initialize=None, initial_weights="random")

    monkeypatch.setitem(FAMILIES, "plain", plain)
    families = {"plain": {"channels": [4, 6], "input_px": 32}}
    run = train(tmp_path, student={"families": families}, distill={"steps": 2})
    assert artifacts.STUDENT.read(run).family == "plain"


def test_teacher_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def uniform(
        features: Any, alphas: Alphas, rows: np.ndarray, labels_L: np.ndarray, classes: int, *, scale: float = 1.0
    ) -> Teacher:
        """A teacher that knows nothing."""

        def predict(features: Any) -> np.ndarray:
            return np.full((len(next(iter(features.values()))), classes), 1.0 / classes)

        return Teacher(probs_NC=predict(features), weights=dict(alphas), accuracy=0.5, predict=predict)

    monkeypatch.setitem(TEACHERS, "uniform", TeacherKind(fit=uniform))
    run = train(tmp_path, distill={"method": "adapted", "teacher": {"name": "uniform", "scale": 2.0}, "steps": 2})
    teacher = artifacts.RESULT.read(run).teacher
    assert teacher is not None and teacher.kind == "uniform"


class Constant:
    """A backend that answers with zeros."""

    modes: ClassVar[dict[str, str]] = {"host-to-host": "a constant"}

    def build(self, model_path: Path, threads: int, batch: int = 1) -> None:
        """Nothing to load."""

    def infer(self, images_BHWC: np.ndarray, mode: str = "host-to-host") -> np.ndarray:
        """Zero logits."""
        return np.zeros((len(images_BHWC), 2), dtype=np.float32)

    def facts(self) -> dict[str, Any]:
        """A version."""
        return {"version": "1"}

    def close(self) -> None:
        """Nothing to let go of."""


def test_strategy_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Last:
        """The last picture first."""

        def __init__(self, pool: Pool) -> None:
            self.labeled: list[int] = []

        def next(self, is_open_M: np.ndarray) -> tuple[int, str]:
            return int(np.flatnonzero(is_open_M)[-1]), f"{len(self.labeled)} before it"

        def take(self, row: int) -> None:
            self.labeled.append(row)

    monkeypatch.setitem(STRATEGIES, "last", Strategy(start=Last, about="from the end"))
    pool = Pool(features_MD=np.ones((8, 2), dtype=np.float32), labels_M=np.full(8, -1))
    picks = suggested(pool, 6, "last")
    assert [pick.row for pick in picks] == [7, 6, 5, 4, 0, 3], "the fifth is drawn at random"
    assert picks[-1].why == "5 before it"


def test_backend_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(backends.BACKENDS, "constant", Constant)
    assert backends.available()["constant"] == "1" and backends.target_of("constant") == "tensorrt"
    recipe = yaml.safe_load(miniature.RECIPE)
    recipe["bench"]["backends"] = ["constant"]
    project = miniature.write(tmp_path, yaml.safe_dump(recipe))
    assert miniature.call("check", project.recipe).code == 0
    backend = backends.create("constant")
    backend.build(tmp_path / "none", threads=1)
    assert backend.infer(np.zeros((3, 4, 4, 3), dtype=np.uint8)).shape == (3, 2)


def test_step_is_one_entry(project_copy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(context: Context) -> None:
        """Write the number of graphs."""
        (context.run / "count").mkdir(exist_ok=True)
        (context.run / "count/graphs.json").write_text(json.dumps(len(context.models)), encoding="utf-8")

    step = Step(name="count", version=1, after=("export", "quantize"), outputs=("count/*",), work=count)

    def steps(context: Context) -> Sequence[Step]:
        return (*pipeline.EXPORT, step)

    context = session.reopen(project_copy.run, {})
    session.finish(context, steps)
    assert json.loads((project_copy.run / "count/graphs.json").read_text()) == 4
    entry = project_copy.manifest()["count"]
    session.finish(session.reopen(project_copy.run, {}), steps)
    assert project_copy.manifest()["count"] == entry, "the same key is up to date"
    raised = replace(step, version=2)
    session.finish(session.reopen(project_copy.run, {}), lambda context: (*pipeline.EXPORT, raised))
    assert project_copy.manifest()["count"]["key"] != entry["key"]
