"""The complete pipeline in small: its files, the steps it does not repeat, and the steps that a change repeats."""

from __future__ import annotations

import csv
import json
import platform
import shutil

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from edgedistill import session
from edgedistill.export import rtx_builder
from edgedistill.measurements import BenchReport
from edgedistill.records import Checkpoint, Kept, Ladder, OnnxModel, SourceWeights, StudentSpec
from edgedistill.run.directory import Run
from edgedistill.run.files import read_json, read_record, sha256_file, write_json
from edgedistill.steps import keep
from tests.helpers import miniature
from tests.helpers.miniature import Project

FILES = """\
recipe.yaml recipe.lock.json manifest.json env.json log.jsonl data.json report.json report.html
weigh/weights.json weigh/sources.json
search/study.journal search/trials.csv search/student.json
distill/last.pt distill/student.safetensors distill/metrics.jsonl distill/result.json
baseline/baseline.json baseline/answers.npz baseline/distill/student.safetensors baseline/distill/result.json
export/student.fp32.onnx export/student.fp16.onnx export/models.json
quantize/student.int8-cpu.onnx quantize/student.int8-tensorrt.onnx quantize/calibration.json quantize/models.json
quantize/guard.json quantize/sensitivity.json keep/kept.json
verify/ladder.json verify/predictions.npz verify/mistakes.npz verify/disagreements.npz
bench/local/onnxruntime-cpu-fp32.json bench/local/onnxruntime-cpu-int8-cpu.json
bundle/SHA256SUMS bundle/agent.pyz bundle/bundle.json bundle/MODEL_CARD.md bundle/student.int8-cpu.onnx
"""
FILES += " ".join(
    [f"engines/{name}.sm89.{end}" for name in ("fp32", "fp16", "int8-tensorrt") for end in ("engine", "json")]
    if rtx_builder.version()
    else ["engines/none.json"]
)
STEPS = [
    "weigh",
    "search",
    "distill",
    "baseline",
    "export",
    "quantize",
    "keep",
    "engines",
    "verify",
    "unknown",
    "bundle",
    "bench-local-onnxruntime-cpu",
    "report",
]


def outcomes(stderr: str) -> dict[str, str]:
    """Step -> "ran" or "up to date", from the progress on stderr."""
    lines = [line.split() for line in stderr.splitlines()]
    current = {words[0]: "up to date" for words in lines if words[1:] == ["up", "to", "date"]}
    return current | {words[0]: "ran" for words in lines if words[1:3] == ["done", "in"]}


def ran(project: Project, *arguments: str) -> list[str]:
    """The steps that `run` executes."""
    completed = miniature.call("run", project.recipe, "--runs", project.runs, *arguments)
    assert completed.code == 0, completed.err
    outcome = outcomes(completed.err)
    assert sorted(outcome) == sorted(STEPS)
    return [step for step in STEPS if outcome[step] == "ran"]


def test_run_directory_has_every_file_and_records_load(finished_project: Project) -> None:
    run = finished_project.run
    assert [name for name in FILES.split() if not (run / name).is_file()] == []
    assert list((run / "tensorboard").glob("events.*"))
    assert (finished_project.runs / "latest").resolve() == run.resolve()
    for name, kind in (
        ("weigh/weights.json", SourceWeights),
        ("search/student.json", StudentSpec),
        ("export/models.json", tuple[OnnxModel, ...]),
        ("verify/ladder.json", Ladder),
        ("distill/result.json", Checkpoint),
        ("bench/local/onnxruntime-cpu-fp32.json", BenchReport),
    ):
        read_record(run / name, kind)
    assert not list(run.rglob("*.tmp"))


def test_manifest_lists_output_files_with_hashes(finished_project: Project) -> None:
    manifest = finished_project.manifest()
    assert list(manifest) == STEPS
    entered = {name: digest for step in manifest.values() for name, digest in step["outputs"].items()}
    assert {name: sha256_file(finished_project.run / name) for name in entered} == entered
    scratch = {
        "recipe.yaml",
        "recipe.lock.json",
        "manifest.json",
        "env.json",
        "log.jsonl",
        "distill/last.pt",
        "search/study.journal",
        "baseline/distill/student.safetensors",  # in the manifest of that part of the run
        "baseline/distill/result.json",
    }
    assert set(FILES.split()) - scratch <= set(entered)


def test_records_refer_to_each_other_by_hash(finished_project: Project) -> None:
    run = finished_project.run
    checkpoint = read_record(run / "distill/result.json", Checkpoint)
    assert sha256_file(run / checkpoint.path) == checkpoint.sha256
    fp32 = read_record(run / "export/models.json", tuple[OnnxModel, ...])[0]
    int8 = [OnnxModel(**fields) for fields in read_json(run / "quantize/models.json")]
    assert fp32.parent_sha256 == checkpoint.sha256 and {model.parent_sha256 for model in int8} == {fp32.sha256}
    for model in (fp32, *int8):
        assert sha256_file(run / model.path) == model.sha256
    report = read_record(run / "bench/local/onnxruntime-cpu-int8-cpu.json", BenchReport)
    assert report.sha256 == int8[0].sha256 and report.agreement_with_host == 1.0
    assert report.accuracy is not None and report.accuracy.n == 16
    weights = read_record(run / "weigh/weights.json", SourceWeights)
    assert sum(weights.alphas.values()) == pytest.approx(1) and sorted(weights.alphas) == ["first", "second"]


def test_student_learns_and_graphs_agree(finished_project: Project) -> None:
    ladder = read_record(finished_project.run / "verify/ladder.json", Ladder)
    assert [rung.artefact for rung in ladder.rungs] == ["torch", "fp32", "fp16", "int8-cpu", "int8-tensorrt"]
    assert {gate.name: gate.passed for gate in ladder.gates} == {"fp32 agreement": True, "fp32 relative error": True}
    fp32 = ladder.rungs[1]
    assert fp32.agreement_with_torch == 1.0
    assert fp32.accuracy.n == 16 and fp32.accuracy.top1 >= 0.8  # the stripes are easy; chance is 0.5
    checkpoint = read_record(finished_project.run / "distill/result.json", Checkpoint)
    assert checkpoint.test == ladder.rungs[0].accuracy


def test_fp32_graph_gives_stored_predictions(finished_project: Project) -> None:
    session = onnxruntime.InferenceSession(str(finished_project.run / "export/student.fp32.onnx"))
    with np.load(finished_project.run / "verify/predictions.npz") as stored:
        predicted = stored["fp32"]
    names = sorted((finished_project.root / "pictures/test").rglob("*.png"))
    images = np.stack([np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)) for path in names])
    (logits,) = session.run(["logits"], {"images": images})
    np.testing.assert_array_equal(logits.argmax(axis=1), predicted)


def test_calibration_uses_no_test_image(finished_project: Project) -> None:
    from edgedistill.export.calibrate import image_hash

    hashes = read_json(finished_project.run / "quantize/calibration.json")["sha256"]
    tests = np.load(finished_project.run / "bundle/images.npy")
    assert len(set(hashes)) == 16 and not set(hashes) & {image_hash(image) for image in tests}


def test_bundle_default_is_kept_graph(finished_project: Project) -> None:
    kept = {choice.target: choice for choice in read_record(finished_project.run / "keep/kept.json", tuple[Kept, ...])}
    assert set(kept) == {"cpu", "tensorrt"}
    assert json.loads((finished_project.run / "bundle/bundle.json").read_text())["default"] == kept["cpu"].artefact
    cpu = kept["cpu"]
    assert cpu.ratio is not None
    assert (cpu.precision == "int8") == (cpu.ratio[1] > 1.05)  # a net this small is rarely faster in int8
    assert kept["tensorrt"].artefact == "int8-tensorrt" and "edgedistill bench" in kept["tensorrt"].why
    assert cpu.why in " ".join((miniature.call("report", finished_project.run).out).split())


def test_accuracy_loss_above_bound_keeps_fp32(project_copy: Project) -> None:
    path = project_copy.run / "quantize/guard.json"
    verdicts = read_json(path)
    for verdict in verdicts:
        verdict["holds"] = False
        verdict["drop"] |= {"points": 3.0, "low": 1.0, "high": 5.0}
    context = session.reopen(project_copy.run, {})
    write_json(path, verdicts)
    keep.STEP.work(context)
    kept = read_record(project_copy.run / "keep/kept.json", tuple[Kept, ...])
    assert [choice.artefact for choice in kept] == ["fp32", "fp16"]
    assert all("at most 1 may be lost" in choice.why for choice in kept)


def test_reports_cover_every_step(finished_project: Project) -> None:
    content = json.loads((finished_project.run / "report.json").read_text())
    assert content["not_run"] == [] and set(content["steps"]) >= set(STEPS) - {"report"}
    page = (finished_project.run / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "lying" in page and "mini" in page
    with (finished_project.run / "search/trials.csv").open() as stream:
        assert [row["state"] for row in csv.DictReader(stream)] == ["complete", "complete"]


def test_second_run_repeats_no_step_and_loads_no_torch(finished_project: Project) -> None:
    completed = miniature.edgedistill("run", finished_project.recipe, "--runs", finished_project.runs)
    assert completed.code == 0, completed.err
    assert outcomes(completed.err) == dict.fromkeys(STEPS, "up to date")
    assert "torch was not loaded" in completed.err  # the bound of three seconds depends on it
    assert "int8" in completed.out


def test_changed_bench_settings_repeat_only_bench(project_copy: Project) -> None:
    assert ran(project_copy, "--set", "bench.samples=5") == ["bench-local-onnxruntime-cpu", "report"]
    assert len(project_copy.directories()) == 1


def test_imported_measurements_are_in_the_next_report(project_copy: Project) -> None:
    shutil.copytree(project_copy.run / "bench/local", project_copy.run / "bench/imported-board")
    for path in (project_copy.run / "bench/imported-board").iterdir():
        path.write_text(path.read_text().replace('"local"', '"imported-board"'))
    assert ran(project_copy) == ["report"] and ran(project_copy) == []
    assert "imported-board" in (project_copy.run / "report.html").read_text(encoding="utf-8")


def test_stated_license_repeats_the_bundle_and_measures_nothing(project_copy: Project) -> None:
    assert ran(project_copy, "--set", "data.license=CC-BY-NC-4.0") == ["bundle", "report"]
    assert len(project_copy.directories()) == 1
    bundle = read_json(project_copy.run / "bundle/bundle.json")
    assert bundle["licence"] == "CC-BY-NC-4.0" and bundle["commercial"] == "no"
    assert bundle["licences"] == [{"what": "data", "name": "folder", "licence": "CC-BY-NC-4.0", "commercial": "no"}]
    assert "commercial: no (data folder)" in (project_copy.run / "bundle/MODEL_CARD.md").read_text(encoding="utf-8")
    assert read_json(project_copy.run / "report.json")["commercial"] == "no"
    # `export` reads the recipe as last run
    assert miniature.call("export", project_copy.run, "--no-int8").code == 0
    assert read_json(project_copy.run / "bundle/bundle.json")["licence"] == "CC-BY-NC-4.0"


def test_other_about_line_is_on_the_card_and_in_the_report(project_copy: Project) -> None:
    assert ran(project_copy, "--set", "about=Seen from above.") == ["bundle", "report"]
    assert "\nSeen from above.\n" in (project_copy.run / "bundle/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Seen from above." in (project_copy.run / "report.html").read_text(encoding="utf-8")


def test_stated_license_is_in_the_report_of_a_run_without_a_bundle(project_copy: Project) -> None:
    for license_text in ("MIT", "CC0-1.0"):
        arguments = ("--set", "distill.steps=2", "--set", f"data.license={license_text}")
        assert miniature.call("train", project_copy.recipe, "--runs", project_copy.runs, *arguments).code == 0
        page = (project_copy.runs / "latest/report.html").read_text(encoding="utf-8")
        assert f"license of the data: {license_text}" in page
    assert len(project_copy.directories()) == 2


def test_confusion_matrix_is_that_of_the_kept_graph(finished_project: Project) -> None:
    content, ladder = read_json(finished_project.run / "report.json"), finished_project.run / "verify/ladder.json"
    default, *others = content["confusions"]
    assert default["artefact"] == read_json(finished_project.run / "bundle/bundle.json")["default"]
    assert {entry["artefact"] for entry in content["confusions"]} == {default["artefact"], "fp32"} and len(others) < 2
    assert sum(images for _, _, images in default["cells"]) == default["n"] == 16
    (rung,) = (rung for rung in read_record(ladder, Ladder).rungs if rung.artefact == default["artefact"])
    recalls = [score["recall"]["share"] for score in default["classes"]]
    assert sum(recalls) / 2 == pytest.approx(rung.accuracy.balanced)
    assert [score["name"] for score in default["classes"]] == ["lying", "upright"]


def test_changed_calibration_settings_do_not_retrain(project_copy: Project) -> None:
    assert ran(project_copy, "--set", "quantize.calibration_images=8") == STEPS[5:]
    assert len(project_copy.directories()) == 1


def test_changed_min_speedup_repeats_keep_but_not_quantize(project_copy: Project) -> None:
    steps = ran(project_copy, "--set", "quantize.min_speedup=1.5")
    assert "keep" in steps and not {"export", "quantize"} & set(steps)


def test_altered_or_missing_output_is_written_again(project_copy: Project) -> None:
    (project_copy.run / "bundle/bundle.json").write_text("{}")
    # the new model card has the latency that was measured since, so that the report follows; nothing is measured again
    assert ran(project_copy) == ["bundle", "report"]
    assert ran(project_copy) == []
    (project_copy.run / "report.html").unlink()
    assert ran(project_copy) == ["report"]


def test_changed_training_length_is_another_run(project_copy: Project) -> None:
    completed = miniature.call("train", project_copy.recipe, "--runs", project_copy.runs, "--set", "distill.steps=4")
    assert completed.code == 0, completed.err
    assert outcomes(completed.err) == dict.fromkeys([*STEPS[:4], "report"], "ran")
    assert len(project_copy.directories()) == 2 and "not run yet" in completed.out
    latest = (project_copy.runs / "latest").resolve()
    assert read_record(latest / "distill/result.json", Checkpoint).steps == 4


def test_changed_image_retrains(project_copy: Project) -> None:
    digest = sha256_file(project_copy.run / "distill/student.safetensors")
    key = project_copy.manifest()["weigh"]["key"]
    miniature.picture(False, 777).save(project_copy.root / "pictures/train/lying/00.png")
    completed = miniature.call("train", project_copy.recipe, "--runs", project_copy.runs)
    assert completed.code == 0, completed.err
    assert outcomes(completed.err) == dict.fromkeys([*STEPS[:4], "report"], "ran")
    assert sha256_file(project_copy.run / "distill/student.safetensors") != digest
    assert len(project_copy.directories()) == 1 and project_copy.manifest()["weigh"]["key"] != key


def test_same_recipe_in_another_folder_gives_same_student(finished_project: Project, project_copy: Project) -> None:
    digest = sha256_file(project_copy.run / "distill/student.safetensors")
    for path in (
        project_copy.runs / "latest",
        project_copy.run / "manifest.json",
        project_copy.run / "distill/last.pt",
    ):
        path.unlink()
    assert miniature.call("train", project_copy.recipe, "--runs", project_copy.runs).code == 0
    assert sha256_file(project_copy.run / "distill/student.safetensors") == digest


def test_failed_gate_is_reported_and_exits_with_3(project_copy: Project) -> None:
    (project_copy.run / "report.json").unlink()
    manifest = project_copy.manifest()
    bound = "export.max_relative_error=1e-12"
    completed = miniature.call("run", project_copy.recipe, "--runs", project_copy.runs, "--set", bound)
    assert completed.code == 3 and "Traceback" not in completed.err
    assert outcomes(completed.err) == {**dict.fromkeys(STEPS[:4], "up to date"), "report": "ran"}
    last = completed.err.strip().splitlines()[-1]
    assert "relative error" in last and "at most 1e-12" in last and "loosen the bound" in last
    # the run is as it was before, and so is its report
    assert project_copy.manifest()["export"] == manifest["export"]
    assert json.loads((project_copy.run / "report.json").read_text())["steps"].keys() >= {"export", "verify"}
    first = miniature.call("run", project_copy.recipe, "--runs", project_copy.runs, "--set", bound, "--set", "seed=1")
    assert first.code == 3 and outcomes(first.err)["report"] == "ran"  # a run without former artifacts
    assert "export" not in json.loads((project_copy.runs / "latest/report.json").read_text())["steps"]


def test_export_without_int8_removes_int8_files_and_is_recorded(project_copy: Project) -> None:
    completed = miniature.call("export", project_copy.run, "--no-int8")
    assert completed.code == 0, completed.err
    assert read_json(project_copy.run / "quantize/models.json") == []
    assert not list((project_copy.run / "quantize").glob("*.onnx"))
    assert not list((project_copy.run / "bundle").glob("*int8*"))
    assert (project_copy.run / "bundle/student.fp32.onnx").is_file()
    assert Run(path=project_copy.run).recipe()[0].quantize.enabled is False


def test_run_searched_in_int8_can_be_exported_without_int8(project_copy: Project) -> None:
    context = session.reopen(project_copy.run, {"search": {"objective": "int8"}})
    with context.run.lock():
        context.run.save_resolved_recipe(context.recipe, context.base)
    completed = miniature.call("export", project_copy.run, "--no-int8")
    assert completed.code == 0, completed.err


def test_recipe_cannot_be_its_own_source(project_copy: Project) -> None:
    source = "{name: first, kind: run, recipe: recipe.yaml}"
    completed = miniature.call(
        "train", project_copy.recipe, "--runs", project_copy.runs, "--set", f"sources.0={source}"
    )
    assert completed.code == 2
    assert completed.err.strip().endswith(f"sources.first: {project_copy.recipe} would be a source of itself")


def test_local_device_is_measured_again_on_another_machine(
    project_copy: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "another-machine")
    assert {"keep", "bench-local-onnxruntime-cpu", "report"} <= set(ran(project_copy))
    assert not {"quantize", "export"} & set(project_copy.manifest()) - set(STEPS)


def test_changed_test_label_is_scored_again(project_copy: Project) -> None:
    before = json.loads((project_copy.run / "distill/result.json").read_text())["top1"]
    first, second = sorted(path for path in (project_copy.root / "pictures/test").iterdir())
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    assert "distill" in ran(project_copy) and "verify" in ran(project_copy, "--set", "export.max_relative_error=0.01")
    after = json.loads((project_copy.run / "distill/result.json").read_text())["top1"]
    assert after == pytest.approx(1 - before)
