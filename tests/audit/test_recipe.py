"""The audit of a recipe: its splits, the features that its run left, and data that it cannot be run with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgedistill.audit.collect import collect
from edgedistill.collection.images import sides
from edgedistill.collection.subject import Subject
from edgedistill.recipe.data_section import Data
from edgedistill.run.directory import Run
from tests.audit.test_collect import clean_tree, save
from tests.helpers import miniature, textures
from tests.helpers.miniature import Project


def audited(project: Project, *options: str | Path) -> dict[str, object]:
    """audit.json of the project's recipe."""
    completed = miniature.call(
        "audit", project.recipe, "--runs", project.runs, "--out", project.root / "page", *options
    )
    assert completed.code == 0, completed.err
    return dict(json.loads((project.root / "page/audit.json").read_text(encoding="utf-8")))


def test_features_of_a_finished_run_are_used(project_copy: Project) -> None:
    audit = audited(project_copy)
    counts = {"labeled": 7, "val": 3, "unlabeled": 4, "test": 8}
    assert audit["counts"] == {"lying": counts, "upright": counts, "": {"unlabeled": 12}}
    assert audit["notes"] == [] and audit["px"] == 32
    teacher = str(audit["teacher"])
    assert "the features of first, second" in teacher
    assert "of 28 labels" in teacher, "those of the test split have no features yet"


def test_sources_compute_the_missing_features(project_copy: Project) -> None:
    assert "of 44 labels" in str(audited(project_copy, "--sources")["teacher"])
    assert "of 44 labels" in str(audited(project_copy)["teacher"]), "they are cached"


def test_torch_is_not_loaded_without_sources(project_copy: Project) -> None:
    completed = miniature.edgedistill("audit", project_copy.recipe, "--runs", project_copy.runs)
    assert completed.code == 0, completed.err
    assert completed.err.strip().endswith("torch was not loaded")
    assert (project_copy.runs / "audit-mini/audit.html").is_file()


def test_recipe_that_was_never_run_is_audited(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    audit = audited(project)
    assert "small pixels" in str(audit["teacher"])
    assert audit["px"] == 128


def test_data_that_cannot_be_run_with_are_audited(tmp_path: Path) -> None:
    project = miniature.write(tmp_path, miniature.RECIPE.replace("labels_per_class: 10", "labels_per_class: 40"))
    pictures = project.root / "pictures/train/lying"
    shutil.copy(pictures / "00.png", pictures / "again.png")
    audit = audited(project)
    (note,) = audit["notes"]  # type: ignore[misc]
    assert "cannot be run with these images" in note and "fewer than the 40 asked for" in note
    assert [finding["kind"] for finding in audit["findings"]] == ["copies"]  # type: ignore[attr-defined]
    assert audit["counts"]["lying"] == {"train": 15, "test": 8}  # type: ignore[index]


def test_sources_of_a_recipe_that_cannot_be_run_are_asked(tmp_path: Path) -> None:
    project = miniature.write(tmp_path, miniature.RECIPE.replace("labels_per_class: 10", "labels_per_class: 40"))
    teacher = str(audited(project, "--sources")["teacher"])
    assert "the features of first, second" in teacher and "of 44 labels" in teacher


def test_copy_of_a_test_image_is_left_out_of_train(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    shutil.copy(project.root / "pictures/test/lying/00.png", project.root / "pictures/train/lying/leak.png")
    audit = audited(project)
    (finding,) = audit["findings"]  # type: ignore[misc]
    assert {(image["name"], image["split"]) for image in finding["images"]} == {
        ("lying/00.png", "test"),
        ("lying/leak.png", "left out"),
    }
    assert not finding["crosses"], "it is on no side"
    assert audit["notes"] == ["the recipe leaves out 1 of train with the pixels of a test image, or of its group"]


def test_near_copies_of_test_images_are_pointed_out_and_kept_together_on_request(tmp_path: Path) -> None:
    clean_tree(tmp_path / "photos")
    picture = np.asarray(Image.open(tmp_path / "photos/train/ant/02.png"))
    save(textures.compressed(picture, quality=80), tmp_path / "photos/test/ant/near.png")

    def notes(**settings: str) -> tuple[str, ...]:
        data = Data.model_validate({"kind": "folder", "root": "photos", **settings})
        run = Run(path=tmp_path / "runs/none")
        subject = Subject(name="photos", path=tmp_path, data=data, base=tmp_path, run=run)
        return collect(subject, tmp_path / "cache")[0].notes

    assert notes() == ("near-copies are on two sides of a split; data.near_copies: keep_together prevents it",)
    assert notes(near_copies="keep_together") == (
        "the recipe leaves out 1 of train with the pixels of a test image, near-copies of one, or of its group",
        "the recipe keeps 2 near-copies together, by their pixels alone",
    )


def test_pictures_of_more_than_8_bits_have_the_range_of_the_splits(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part, brightest in (("train", 4000), ("test", 9000)):
        for name in ("cold", "warm"):
            (tmp_path / "deep" / part / name).mkdir(parents=True)
            for row in range(6):
                levels = generator.integers(1000, brightest, (40, 40)).astype(np.uint16)
                Image.fromarray(levels).save(tmp_path / "deep" / part / name / f"{row}.png")
    data = Data.model_validate({"kind": "folder", "root": "deep"})
    subject = Subject(name="deep", path=tmp_path, data=data, base=tmp_path, run=Run(path=tmp_path / "runs/deep"))
    audit, store = collect(subject, tmp_path / "cache")
    assert audit.counts["cold"] == {"labeled": 4, "val": 2, "test": 6}
    assert store.limits is not None and store.limits[1] < 4000, "measured over train alone"


def test_copies_that_the_recipe_leaves_out_are_counted(tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    pictures = project.root / "pictures/train"
    shutil.copy(pictures / "lying/00.png", pictures / "lying/again.png")
    shutil.copy(pictures / "lying/01.png", pictures / "upright/other.png")
    audit = audited(project)
    assert audit["notes"] == [
        "the recipe leaves out 2 of train with the pixels of an image with another label",
        "the recipe leaves out 1 of train with the pixels of another image",
    ]
    contradicted = next(finding for finding in audit["findings"] if finding["kind"] == "two-labels")  # type: ignore[attr-defined]
    assert {image["split"] for image in contradicted["images"]} == {"left out"}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("labeled", {"train"}),
        ("unlabeled and labeled", {"train"}),
        ("labeled and val", {"train", "val"}),
        ("test", {"test"}),
        ("left out", set()),
        ("", {"train"}),
    ],
)
def test_sides_of_splits(split: str, expected: set[str]) -> None:
    assert sides(split) == expected
