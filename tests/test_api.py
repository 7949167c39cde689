"""The Python interface: its names are frozen, it loads nothing early, and its pieces do what the commands do."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgedistill as ed
from edgedistill import api
from edgedistill.recipe.options import listed_names
from edgedistill.run.directory import Run as RunDirectory
from edgedistill.similarity.metrics import METRICS
from tests.helpers.miniature import Project

# what programs of others rely on
SIGNATURES = """\
bench(run: 'Run | str | Path' = 'runs/latest', *, devices: 'Names' = (), backends: 'Names' = (), again: 'bool' = False) -> 'Run'
export(run: 'Run | str | Path' = 'runs/latest', *, int8: 'bool | None' = None, qat: 'bool | None' = None) -> 'Run'
load(path: 'str | Path' = 'runs/latest') -> 'Student'
quantize(model: 'str | Path', images: 'str | Path', *, labels: 'str | Path | None' = None, out: 'str | Path | None' = None, preprocessing: 'Mapping[str, Any] | None' = None, classes: 'Sequence[str]' = (), output: 'str | None' = None, px: 'int | tuple[int, int] | None' = None, max_drop: 'float' = 1.0, calibration_images: 'int' = 300) -> 'Quantized'
similarity(features: 'ArrayLike', probs: 'ArrayLike | None', labels: 'ArrayLike', metric: 'str' = 'probe', **options: 'Any') -> 'float'
suggest(data: 'str | Path', n: 'int' = 50, *, runs: 'str | Path' = 'runs', seed: 'int' = 0) -> 'list[Suggestion]'
"""  # noqa: E501
RUN = {
    *("data", "device", "latency_ms", "labels_per_class", "sources", "minutes", "download", "any_license"),
    *("settings", "runs", "callbacks"),
}
NAMES = {
    *("Callback", "EdgeDistillError", "InputError", "Prediction", "Quantized", "Run", "Student", "__version__"),
    *("bench", "export", "load", "quantize", "run", "similarity", "suggest", "train"),
}


def test_names_and_signatures_are_frozen() -> None:
    assert set(ed.__all__) == NAMES and set(api.__all__) == NAMES - {"__version__"}
    names = ("bench", "export", "load", "quantize", "similarity", "suggest")
    assert "".join(f"{name}{inspect.signature(getattr(api, name))}\n" for name in names) == SIGNATURES
    assert set(inspect.signature(api.run).parameters) == RUN
    assert set(inspect.signature(api.train).parameters) == {"recipe", "settings", "runs", "callbacks"}
    assert set(dir(ed)) >= NAMES and all(getattr(ed, name) is not None for name in NAMES)


def test_import_loads_neither_torch_nor_numpy() -> None:
    program = """
import sys
before = set(sys.modules)
import edgedistill as ed
print(len([name for name in set(sys.modules) - before if name.startswith("edgedistill")]))
print(sorted({"torch", "numpy", "PIL", "onnxruntime", "typer"} & set(sys.modules)))
ed.load, ed.Run, ed.similarity, ed.bench, ed.run
print("torch" in sys.modules, callable(ed.run), ed.run.__name__)
import edgedistill.run.directory, edgedistill.export.onnx
print(callable(ed.export), edgedistill.run.directory.CACHE)
"""
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert completed.stdout.splitlines() == ["1", "[]", "False True edgedistill.run", "True .cache"]


def test_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        getattr(ed, "runn")  # noqa: B009 - a type checker knows that it is not there


def test_run_has_the_report_and_the_accuracy_of_its_student(finished_project: Project) -> None:
    run = ed.Run(finished_project.runs / "latest")
    assert run.path == finished_project.run
    written, report = json.loads((run.path / "report.json").read_text()), run.report
    assert report["steps"].keys() - {"report"} == written["steps"].keys() - {"report"}
    assert {**report, "steps": None} == {**written, "steps": None}
    folder = finished_project.root / "pictures/test"
    answers = run.student.predict(folder)
    right = [answer.path is not None and answer.path.parent.name == answer.label for answer in answers]
    assert run.accuracy == pytest.approx(np.mean(right))
    assert "The student is" in str(run) and repr(run) == f"Run({str(run.path)!r})"
    page = run._repr_html_()
    assert page.startswith("<iframe srcdoc=") and "<script" not in page


def test_commands_in_python_go_on_with_a_run(project_copy: Project) -> None:
    run = ed.run(project_copy.recipe, runs=project_copy.runs)
    assert run.path == project_copy.run
    assert ed.train(project_copy.recipe, runs=project_copy.runs).path == run.path
    assert ed.bench(run, backends=["onnxruntime-cpu"]).path == run.path
    exported = ed.export(run, int8=False)
    assert "int8" not in {model["precision"] for model in exported.report["models"]}
    assert RunDirectory(path=run.path).recipe()[0].quantize.enabled is False


def test_settings_are_those_of_set(project_copy: Project) -> None:
    with pytest.raises(ed.InputError, match=r"distill\.stepz"):
        ed.train(project_copy.recipe, settings={"distill.stepz": 3}, runs=project_copy.runs)
    with pytest.raises(ed.InputError, match=r"is a recipe"):
        ed.run(project_copy.recipe, minutes=3, runs=project_copy.runs)


def test_settings_are_values_of_python(project_copy: Project) -> None:
    settings = {"about": "\N{BIRD} of \N{SNOWMAN}", "data.root": Path("pictures"), "distill.lr": np.float64(0.01)}
    run = ed.train(project_copy.recipe, settings=settings, runs=project_copy.runs)
    assert run.path == project_copy.run, "these are the values of the recipe"
    recipe, _ = RunDirectory(path=run.path).recipe()
    assert recipe.about == settings["about"] and recipe.data.options["root"] == "pictures"


def test_suggestions_have_reasons(finished_project: Project, tmp_path: Path) -> None:
    suggestions = ed.suggest(finished_project.root / "more", 3, runs=tmp_path)
    assert len({suggestion.path for suggestion in suggestions}) == 3 and all(
        suggestion.why for suggestion in suggestions
    )


def test_similarity_is_the_metric_with_names_as_labels() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    features = generator.normal(size=(60, 4)) + 3 * labels[:, None]
    names = np.array(["cat", "dog"])[labels]
    for metric in ("parc", "probe", "logme", "knn"):
        expected = METRICS[metric].score(features, None, labels)
        assert ed.similarity(features.tolist(), None, names, metric=metric) == pytest.approx(expected)
    assert ed.similarity(features, None, labels, "knn", k=1) == METRICS["knn"].score(features, None, labels, k=1)


@pytest.mark.parametrize(
    ("metric", "options", "problem"),
    [
        ("parcc", {}, "did you mean parc"),
        ("leep", {}, "needs class probabilities"),
        ("knn", {"kk": 3}, "kk: unknown key"),
    ],
)
def test_similarity_says_what_is_wrong(metric: str, options: dict[str, int], problem: str) -> None:
    features, labels = np.eye(4), [0, 0, 1, 1]
    with pytest.raises(ed.InputError, match=problem):
        ed.similarity(features, None, labels, metric, **options)
    with pytest.raises(ed.InputError, match="do not fit"):
        ed.similarity(features[:3], None, labels)


@pytest.mark.parametrize("names", ["a, b", ["a", "b"], ("a ", " b")])
def test_names_are_a_list_or_a_text_with_commas(names: Any) -> None:
    assert listed_names(names) == ("a", "b")
