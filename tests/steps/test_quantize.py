"""Quantization-aware distillation as a part of the road: from the recipe to the graph that is deployed."""

from __future__ import annotations

import json

import pytest

from edgedistill.recipe.schema import Qat, Quantize
from edgedistill.records import Guarded, OnnxModel
from edgedistill.run.files import read_record
from tests.helpers import miniature
from tests.helpers.miniature import Project


@pytest.fixture(scope="module")
def tuned(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = finished.copy(tmp_path_factory.mktemp("qat"))
    said = miniature.call("export", project.run, "--qat")
    assert said.code == 0, said.err
    assert "200 steps of quantization-aware distillation" in said.err
    return project


def test_both_targets_learn_in_their_own_arithmetic(tuned: Project) -> None:
    for target in ("cpu", "tensorrt"):
        lines = (tuned.run / "qat" / target / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 200
        assert json.loads(lines[-1])["terms"].keys() >= {"labels"}
    guarded = read_record(tuned.run / "quantize/guard.json", tuple[Guarded, ...])
    assert [one.target for one in guarded] == ["cpu", "tensorrt"]
    for one in guarded:
        assert one.qat is not None and one.before is not None
        assert one.qat >= 0.995
        assert one.drop.points <= one.before.points


def test_the_weights_that_are_deployed_are_the_trained_ones(finished: Project, tuned: Project) -> None:
    plain, trained = (read_record(one.run / "quantize/models.json", tuple[OnnxModel, ...]) for one in (finished, tuned))
    assert all(before.sha256 != after.sha256 for before, after in zip(plain, trained, strict=True))
    # the fp32 graph is what was trained before, and still is
    assert (finished.run / "export/student.fp32.onnx").read_bytes() == (
        tuned.run / "export/student.fp32.onnx"
    ).read_bytes()


def test_it_is_remembered_and_done_once(tuned: Project) -> None:
    said = miniature.call("export", tuned.run)
    assert said.code == 0, said.err
    assert "quantize   up to date" in said.err


def test_the_report_says_what_it_brought(tuned: Project) -> None:
    said = miniature.call("report", tuned.run)
    assert "after quantization-aware" in " ".join(said.out.split())


@pytest.mark.parametrize(("given", "meant"), [(True, Qat()), (False, None), (None, None), ({"steps": 5}, Qat(steps=5))])
def test_what_a_recipe_may_say(given: object, meant: Qat | None) -> None:
    assert Quantize.model_validate({"qat": given}).qat == meant


def test_without_it_again_nothing_of_it_is_left(tuned: Project) -> None:
    said = miniature.call("export", tuned.run, "--no-qat")
    assert said.code == 0, said.err
    guarded = read_record(tuned.run / "quantize/guard.json", tuple[Guarded, ...])
    assert all(one.qat is None for one in guarded)
    assert not [path for path in (tuned.run / "qat").rglob("*") if path.is_file()]


def test_settings_of_the_recipe_outlive_the_flag(tuned: Project) -> None:
    for arguments in (
        ("run", tuned.recipe, "--runs", tuned.runs, "--set", "quantize.qat={steps: 3}"),
        ("export", tuned.run, "--qat"),
    ):
        said = miniature.call(*arguments)
        assert said.code == 0, said.err
    assert len((tuned.run / "qat/cpu/metrics.jsonl").read_text().splitlines()) == 3
