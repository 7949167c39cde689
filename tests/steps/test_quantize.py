"""Quantization-aware distillation as a step of the pipeline: from the recipe to the deployed graph."""

from __future__ import annotations

import json

import pytest

from edgedistill.recipe.schema import Qat, Quantize
from edgedistill.records import Guarded, OnnxModel
from edgedistill.run.files import read_record
from tests.helpers import miniature
from tests.helpers.miniature import Project

STEPS = 60


@pytest.fixture(scope="module")
def tuned(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = finished_project.copy(tmp_path_factory.mktemp("qat"))
    lock = project.run / "recipe.lock.json"
    resolved = json.loads(lock.read_text(encoding="utf-8"))
    resolved["recipe"]["quantize"]["qat"] = {"steps": STEPS}
    lock.write_text(json.dumps(resolved), encoding="utf-8")
    outcome = miniature.call("export", project.run, "--qat")
    assert outcome.code == 0, outcome.err
    assert f"{STEPS} steps of quantization-aware distillation" in outcome.err
    return project


def test_each_target_is_trained_in_its_own_arithmetic(tuned: Project) -> None:
    for target in ("cpu", "tensorrt"):
        lines = (tuned.run / "qat" / target / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == STEPS
        assert json.loads(lines[-1])["terms"].keys() >= {"labels"}
    guarded = read_record(tuned.run / "quantize/guard.json", tuple[Guarded, ...])
    assert [guard.target for guard in guarded] == ["cpu", "tensorrt"]
    for guard in guarded:
        assert guard.qat is not None and guard.before is not None
        assert guard.qat >= 0.995
        assert guard.drop.points <= guard.before.points


def test_deployed_graphs_hold_the_trained_weights(finished_project: Project, tuned: Project) -> None:
    plain, trained = (
        read_record(project.run / "quantize/models.json", tuple[OnnxModel, ...])
        for project in (finished_project, tuned)
    )
    assert all(before.sha256 != after.sha256 for before, after in zip(plain, trained, strict=True))
    # the fp32 graph is unchanged
    assert (finished_project.run / "export/student.fp32.onnx").read_bytes() == (
        tuned.run / "export/student.fp32.onnx"
    ).read_bytes()


def test_qat_is_remembered_and_runs_once(tuned: Project) -> None:
    outcome = miniature.call("export", tuned.run)
    assert outcome.code == 0, outcome.err
    assert "quantize   up to date" in outcome.err


def test_report_shows_effect_of_qat(tuned: Project) -> None:
    outcome = miniature.call("report", tuned.run)
    assert "after quantization-aware" in " ".join(outcome.out.split())


@pytest.mark.parametrize(
    ("option", "expected"), [(True, Qat()), (False, None), (None, None), ({"steps": 5}, Qat(steps=5))]
)
def test_qat_option_accepts_flag_or_settings(option: object, expected: Qat | None) -> None:
    assert Quantize.model_validate({"qat": option}).qat == expected


def test_disabling_qat_removes_its_files(tuned: Project) -> None:
    outcome = miniature.call("export", tuned.run, "--no-qat")
    assert outcome.code == 0, outcome.err
    guarded = read_record(tuned.run / "quantize/guard.json", tuple[Guarded, ...])
    assert all(guard.qat is None for guard in guarded)
    assert not [path for path in (tuned.run / "qat").rglob("*") if path.is_file()]


def test_qat_flag_keeps_settings_of_recipe(tuned: Project) -> None:
    for arguments in (
        ("run", tuned.recipe, "--runs", tuned.runs, "--set", "quantize.qat={steps: 3}"),
        ("export", tuned.run, "--qat"),
    ):
        outcome = miniature.call(*arguments)
        assert outcome.code == 0, outcome.err
    assert len((tuned.run / "qat/cpu/metrics.jsonl").read_text().splitlines()) == 3
