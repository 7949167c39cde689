"""The whole road in small: what it leaves, what it does not do twice, and what a change sets off."""

from __future__ import annotations

import csv
import json
import platform

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from edgedistill import session
from edgedistill.export import rtx_builder
from edgedistill.records import BenchReport, Checkpoint, Kept, Ladder, OnnxModel, SourceWeights, StudentSpec
from edgedistill.run.directory import Run
from edgedistill.run.files import read_json, read_record, sha256_file, write_json
from edgedistill.steps import keep
from tests.helpers import miniature
from tests.helpers.miniature import Project

LEFT = """\
recipe.yaml recipe.lock.json manifest.json env.json log.jsonl data.json report.json report.html
weigh/weights.json weigh/sources.json
search/study.journal search/trials.csv search/student.json
distill/last.pt distill/student.safetensors distill/metrics.jsonl distill/result.json
export/student.fp32.onnx export/student.fp16.onnx export/models.json
quantize/student.int8-cpu.onnx quantize/student.int8-tensorrt.onnx quantize/calibration.json quantize/models.json
quantize/guard.json quantize/sensitivity.json keep/kept.json
verify/ladder.json verify/predictions.npz verify/mistakes.npz verify/disagreements.npz
bench/local/onnxruntime-cpu-fp32.json bench/local/onnxruntime-cpu-int8-cpu.json
bundle/SHA256SUMS bundle/agent.pyz bundle/bundle.json bundle/student.int8-cpu.onnx
"""
LEFT += " ".join(
    [f"engines/{name}.sm89.{end}" for name in ("fp32", "fp16", "int8-tensorrt") for end in ("engine", "json")]
    if rtx_builder.version()
    else ["engines/none.json"]
)
STEPS = [
    "weigh",
    "search",
    "distill",
    "export",
    "quantize",
    "keep",
    "engines",
    "verify",
    "bundle",
    "bench-local-onnxruntime-cpu",
    "report",
]


def outcome(said: str) -> dict[str, str]:
    """Step -> "ran" or "up to date", from the progress on stderr."""
    lines = [line.split() for line in said.splitlines()]
    known = {words[0]: "up to date" for words in lines if words[1:] == ["up", "to", "date"]}
    return known | {words[0]: "ran" for words in lines if words[1:3] == ["done", "in"]}


def ran(project: Project, *arguments: str) -> list[str]:
    """The steps that `run` finds it has to do."""
    said = miniature.call("run", project.recipe, "--runs", project.runs, *arguments)
    assert said.code == 0, said.err
    known = outcome(said.err)
    assert sorted(known) == sorted(STEPS)
    return [step for step in STEPS if known[step] == "ran"]


def test_every_file_is_there_and_readable(finished: Project) -> None:
    here = finished.run
    assert [name for name in LEFT.split() if not (here / name).is_file()] == []
    assert list((here / "tensorboard").glob("events.*"))
    assert (finished.runs / "latest").resolve() == here.resolve()
    for name, kind in (
        ("weigh/weights.json", SourceWeights),
        ("search/student.json", StudentSpec),
        ("export/models.json", tuple[OnnxModel, ...]),
        ("verify/ladder.json", Ladder),
        ("distill/result.json", Checkpoint),
        ("bench/local/onnxruntime-cpu-fp32.json", BenchReport),
    ):
        read_record(here / name, kind)
    assert not list(here.rglob("*.tmp"))


def test_the_manifest_implies_the_files(finished: Project) -> None:
    manifest = finished.manifest()
    assert list(manifest) == STEPS
    entered = {name: known for step in manifest.values() for name, known in step["outputs"].items()}
    assert {name: sha256_file(finished.run / name) for name in entered} == entered
    scratch = {
        "recipe.yaml",
        "recipe.lock.json",
        "manifest.json",
        "env.json",
        "log.jsonl",
        "distill/last.pt",
        "search/study.journal",
    }
    assert set(LEFT.split()) - scratch <= set(entered)


def test_records_point_at_each_other(finished: Project) -> None:
    here = finished.run
    trained = read_record(here / "distill/result.json", Checkpoint)
    assert sha256_file(here / trained.path) == trained.sha256
    fp32 = read_record(here / "export/models.json", tuple[OnnxModel, ...])[0]
    int8 = [OnnxModel(**one) for one in read_json(here / "quantize/models.json")]
    assert fp32.parent_sha256 == trained.sha256 and {one.parent_sha256 for one in int8} == {fp32.sha256}
    for one in (fp32, *int8):
        assert sha256_file(here / one.path) == one.sha256
    measured = read_record(here / "bench/local/onnxruntime-cpu-int8-cpu.json", BenchReport)
    assert measured.sha256 == int8[0].sha256 and measured.agreement_with_host == 1.0
    assert measured.accuracy is not None and measured.accuracy.n == 16
    weights = read_record(here / "weigh/weights.json", SourceWeights)
    assert sum(weights.alphas.values()) == pytest.approx(1) and sorted(weights.alphas) == ["first", "second"]


def test_the_student_learned_and_the_graphs_agree(finished: Project) -> None:
    ladder = read_record(finished.run / "verify/ladder.json", Ladder)
    assert [rung.artefact for rung in ladder.rungs] == ["torch", "fp32", "fp16", "int8-cpu", "int8-tensorrt"]
    assert {gate.name: gate.passed for gate in ladder.gates} == {"fp32 agreement": True, "fp32 relative error": True}
    fp32 = ladder.rungs[1]
    assert fp32.agreement_with_torch == 1.0
    assert fp32.accuracy.n == 16 and fp32.accuracy.top1 >= 0.8  # the stripes are easy; chance is 0.5
    trained = read_record(finished.run / "distill/result.json", Checkpoint)
    assert trained.test == ladder.rungs[0].accuracy


def test_the_fp32_graph_gives_the_class_of_a_picture(finished: Project) -> None:
    session = onnxruntime.InferenceSession(str(finished.run / "export/student.fp32.onnx"))
    with np.load(finished.run / "verify/predictions.npz") as known:
        predicted = known["fp32"]
    names = sorted((finished.root / "pictures/test").rglob("*.png"))
    images = np.stack([np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)) for path in names])
    (logits,) = session.run(["logits"], {"images": images})
    np.testing.assert_array_equal(logits.argmax(axis=1), predicted)


def test_calibration_saw_no_test_image(finished: Project) -> None:
    from edgedistill.export.calibrate import image_hash

    seen = read_json(finished.run / "quantize/calibration.json")["sha256"]
    tests = np.load(finished.run / "bundle/images.npy")
    assert len(set(seen)) == 16 and not set(seen) & {image_hash(image) for image in tests}


def test_what_is_kept_is_what_the_device_runs(finished: Project) -> None:
    kept = {one.target: one for one in read_record(finished.run / "keep/kept.json", tuple[Kept, ...])}
    assert set(kept) == {"cpu", "tensorrt"}
    assert json.loads((finished.run / "bundle/bundle.json").read_text())["default"] == kept["cpu"].artefact
    cpu = kept["cpu"]
    assert cpu.ratio is not None
    assert (cpu.precision == "int8") == (cpu.ratio[1] > 1.05)  # a net this small is rarely faster in int8
    assert kept["tensorrt"].artefact == "int8-tensorrt" and "edgedistill bench" in kept["tensorrt"].why
    assert cpu.why in " ".join((miniature.call("report", finished.run).out).split())


def test_a_loss_beyond_the_bound_keeps_fp32(copied: Project) -> None:
    path = copied.run / "quantize/guard.json"
    found = read_json(path)
    for one in found:
        one["holds"] = False
        one["drop"] |= {"points": 3.0, "low": 1.0, "high": 5.0}
    context = session.reopen(copied.run, {})
    write_json(path, found)
    keep.STEP.work(context)
    kept = read_record(copied.run / "keep/kept.json", tuple[Kept, ...])
    assert [one.artefact for one in kept] == ["fp32", "fp16"]
    assert all("at most 1 may be lost" in one.why for one in kept)


def test_reports_are_whole(finished: Project) -> None:
    content = json.loads((finished.run / "report.json").read_text())
    assert content["not_run"] == [] and set(content["steps"]) >= set(STEPS) - {"report"}
    page = (finished.run / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "lying" in page and "mini" in page
    with (finished.run / "search/trials.csv").open() as stream:
        assert [row["state"] for row in csv.DictReader(stream)] == ["complete", "complete"]


def test_a_second_run_does_nothing_quickly_and_without_torch(finished: Project) -> None:
    said = miniature.edgedistill("run", finished.recipe, "--runs", finished.runs)
    assert said.code == 0, said.err
    assert outcome(said.err) == dict.fromkeys(STEPS, "up to date")
    assert "torch was not loaded" in said.err  # what three seconds, the promise, hang on
    assert "int8" in said.out


def test_bench_settings_measure_again_and_no_more(copied: Project) -> None:
    assert ran(copied, "--set", "bench.samples=5") == ["bench-local-onnxruntime-cpu", "report"]
    assert len(copied.directories()) == 1


def test_calibration_settings_do_not_retrain(copied: Project) -> None:
    assert ran(copied, "--set", "quantize.calibration_images=8") == STEPS[4:]
    assert len(copied.directories()) == 1


def test_another_speed_asked_for_only_decides_again(copied: Project) -> None:
    again = ran(copied, "--set", "quantize.min_speedup=1.5")
    assert "keep" in again and not {"export", "quantize"} & set(again)


def test_an_altered_output_is_made_again(copied: Project) -> None:
    (copied.run / "bundle/bundle.json").write_text("{}")
    # what follows from it is unchanged, and is left alone
    assert ran(copied) == ["bundle"]
    (copied.run / "report.html").unlink()
    assert ran(copied) == ["report"]


def test_a_longer_training_is_another_run(copied: Project) -> None:
    said = miniature.call("train", copied.recipe, "--runs", copied.runs, "--set", "distill.steps=4")
    assert said.code == 0, said.err
    assert outcome(said.err) == dict.fromkeys([*STEPS[:3], "report"], "ran")
    assert len(copied.directories()) == 2 and "not run yet" in said.out
    other = (copied.runs / "latest").resolve()
    assert read_record(other / "distill/result.json", Checkpoint).steps == 4


def test_a_changed_image_retrains(copied: Project) -> None:
    before, known = sha256_file(copied.run / "distill/student.safetensors"), copied.manifest()["weigh"]["key"]
    miniature.picture(False, 777).save(copied.root / "pictures/train/lying/00.png")
    said = miniature.call("train", copied.recipe, "--runs", copied.runs)
    assert said.code == 0, said.err
    assert outcome(said.err) == dict.fromkeys([*STEPS[:3], "report"], "ran")
    assert sha256_file(copied.run / "distill/student.safetensors") != before
    assert len(copied.directories()) == 1 and copied.manifest()["weigh"]["key"] != known


def test_the_same_recipe_elsewhere_gives_the_same_student(finished: Project, copied: Project) -> None:
    known = sha256_file(copied.run / "distill/student.safetensors")
    for name in ("runs/latest", *(f"runs/{copied.run.name}/{file}" for file in ("manifest.json", "distill/last.pt"))):
        (copied.root / name).unlink()
    assert miniature.call("train", copied.recipe, "--runs", copied.runs).code == 0
    assert sha256_file(copied.run / "distill/student.safetensors") == known


def test_a_gate_that_fails_is_reported_and_exits_with_3(copied: Project) -> None:
    (copied.run / "report.json").unlink()
    said = miniature.call("run", copied.recipe, "--runs", copied.runs, "--set", "export.max_relative_error=1e-12")
    assert said.code == 3 and "Traceback" not in said.err
    assert outcome(said.err) == {**dict.fromkeys(STEPS[:3], "up to date"), "report": "ran"}
    last = said.err.strip().splitlines()[-1]
    assert "relative error" in last and "at most 1e-12" in last and "loosen the bound" in last
    # the refused step is no longer in the manifest, and the report does not speak of what it left before
    assert "export" not in copied.manifest()
    content = json.loads((copied.run / "report.json").read_text())
    assert "export" not in content["steps"] and copied.manifest()["report"]


def test_export_without_int8_and_what_it_remembers(copied: Project) -> None:
    said = miniature.call("export", copied.run, "--no-int8")
    assert said.code == 0, said.err
    assert read_json(copied.run / "quantize/models.json") == []
    assert not list((copied.run / "quantize").glob("*.onnx"))
    assert not list((copied.run / "bundle").glob("*int8*"))
    assert (copied.run / "bundle/student.fp32.onnx").is_file()
    assert Run(path=copied.run).recipe()[0].quantize.enabled is False


def test_a_run_that_was_searched_in_int8_can_be_exported_without(copied: Project) -> None:
    context = session.reopen(copied.run, {"search": {"objective": "int8"}})
    with context.run.lock():
        context.run.remember(context.recipe, context.base)
    said = miniature.call("export", copied.run, "--no-int8")
    assert said.code == 0, said.err


def test_a_recipe_cannot_be_its_own_source(copied: Project) -> None:
    own = "{name: first, kind: run, recipe: recipe.yaml}"
    said = miniature.call("train", copied.recipe, "--runs", copied.runs, "--set", f"sources.0={own}")
    assert said.code == 2
    assert said.err.strip().endswith(f"sources.first: {copied.recipe} would be a source of itself")


def test_a_device_that_means_another_machine_is_measured_again(
    copied: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "another-machine")
    assert {"keep", "bench-local-onnxruntime-cpu", "report"} <= set(ran(copied))
    assert not {"quantize", "export"} & set(copied.manifest()) - set(STEPS)


def test_a_changed_test_label_is_scored_again(copied: Project) -> None:
    before = json.loads((copied.run / "distill/result.json").read_text())["top1"]
    first, second = sorted(path for path in (copied.root / "pictures/test").iterdir())
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    assert "distill" in ran(copied) and "verify" in ran(copied, "--set", "export.max_relative_error=0.01")
    after = json.loads((copied.run / "distill/result.json").read_text())["top1"]
    assert after == pytest.approx(1 - before)
