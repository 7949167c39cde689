"""Suggestions from folders, recipes and runs: whatever cannot or must not be labeled is never among them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgedistill.data.label_file import Label, read_labels, write_labels
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.labeling import sources
from edgedistill.labeling.suggest import Suggested, answer, refuse_loss, subject_of, suggest
from tests.helpers import miniature, textures
from tests.helpers.miniature import Project
from tests.helpers.textures import PX

KINDS = 3
EACH = 12


@pytest.fixture(autouse=True)
def no_installed_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pixels stand in for nets, which take seconds to load."""
    monkeypatch.setattr(sources, "PACKAGES", {})


def save(square: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(square).save(path)


def tree(root: Path) -> Path:
    """root/NN.png: pictures of three colors, no two alike; folders day/ and night/ are no classes."""
    colors = 60 * np.eye(KINDS) - 20
    for kind in range(KINDS):
        for row, square in enumerate(textures.squares(22 * textures.textures(EACH, kind) + colors[kind])):
            save(square, root / ("day" if row % 2 else "night") / f"{kind}-{row:02d}.png")
    write_labels(root / "labels.csv", {})
    return root


def chosen(folder: Path, n: int = 50, **options: object) -> Suggested:
    return suggest(folder, n, runs=folder.parent / "runs", **options)  # type: ignore[arg-type]


def paths(outcome: Suggested) -> list[str]:
    return [entry.path for entry in outcome.record.suggestions]


def test_every_picture_is_suggested_once_and_larger_batches_contain_smaller_ones(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    everything = paths(chosen(folder))
    assert sorted(everything) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    few = chosen(folder, 7)
    assert paths(few) == everything[:7]
    assert [entry.how for entry in few.record.suggestions] == ["suggested"] * 4 + ["random"] + ["suggested"] * 2
    assert {path.split("/")[1][0] for path in paths(few)[:4]} == {"0", "1", "2"}, "every color is among the first"
    assert set(few.record.clusters) == set(everything)


def test_order_of_files_and_other_folders_change_nothing(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    again = tmp_path / "again"
    for path in sorted(folder.rglob("*.png"), reverse=True):
        save(np.asarray(Image.open(path)), again / path.relative_to(folder))
    write_labels(again / "labels.csv", {})
    assert paths(chosen(folder, 9)) == paths(chosen(again, 9))
    assert paths(chosen(folder, 9, seed=1)) != paths(chosen(folder, 9))


def test_copies_groups_blank_and_unreadable_pictures(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    first, second = folder / "night/0-00.png", folder / "night/0-02.png"
    shutil.copy(first, folder / "copy.png")
    save(textures.compressed(np.asarray(Image.open(second)), quality=80), folder / "near.png")
    save(np.full((PX, PX, 3), 140, dtype=np.uint8), folder / "gray.png")
    (folder / "broken.png").write_bytes(first.read_bytes()[:900])
    outcome = chosen(folder)
    names = set(paths(outcome))
    assert len(names) == KINDS * EACH
    assert len(names & {"copy.png", "night/0-00.png"}) == 1
    assert len(names & {"near.png", "night/0-02.png"}) == 1
    assert not names & {"gray.png", "broken.png"}
    notes = " ".join(outcome.record.notes)
    assert "1 picture that cannot be read" in notes
    assert "1 picture of one brightness" in notes
    assert "counted once: 2 pictures" in notes


def test_labels_of_copies_count_and_unusable_pictures_are_left_alone(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    shutil.copy(folder / "night/0-00.png", folder / "copy.png")
    labels = {"copy.png": Label(name="red", how="random"), "day/1-01.png": Label(how="unusable")}
    write_labels(folder / "labels.csv", labels)
    outcome = chosen(folder)
    assert not set(paths(outcome)) & {"copy.png", "night/0-00.png", "day/1-01.png"}
    assert outcome.record.labels == {"red": 1}
    assert {entry.guess for entry in outcome.record.suggestions} == {""}, "one class makes no teacher"


def test_path_with_a_dot_is_the_picture(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    first, second, third = paths(chosen(folder))[:3]
    table = f"path,label,how\n./{first},,unusable\n./{second},red,bulk\n"
    (folder / "labels.csv").write_text(table, encoding="utf-8")
    outcome = chosen(folder)
    assert not {first, second} & set(paths(outcome))
    assert outcome.job.how == {second: "bulk"} and "never suggested: 1 picture marked as unusable" in outcome.job.notes
    answers = tmp_path / "answers.csv"
    answers.write_text(f"path,label,how\n./{third},blue,random\n", encoding="utf-8")
    assert answer(subject_of(folder, tmp_path / "runs"), answers) == 1
    labels = read_labels(folder / "labels.csv")
    assert labels[first].how == "unusable" and labels[second].name == "red" and labels[third].name == "blue"
    refuse_loss(subject_of(folder, tmp_path / "runs"), answers)


def test_teacher_guesses_once_two_classes_have_labels(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    labels = {
        f"{'day' if row % 2 else 'night'}/{kind}-{row:02d}.png": Label(name="rgb"[kind], how="given")
        for kind in range(KINDS)
        for row in range(6)
    }
    write_labels(folder / "labels.csv", labels)
    outcome = chosen(folder)
    assert len(paths(outcome)) == KINDS * EACH - len(labels)
    right = ["rgb"[int(entry.path.split("/")[1][0])] == entry.guess for entry in outcome.record.suggestions]
    assert np.mean(right) > 0.8
    assert all(entry.sure is not None and 1 / 3 <= entry.sure <= 1 for entry in outcome.record.suggestions)


def test_folders_are_classes_without_a_file_and_the_message_says_how_they_are_not(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    (folder / "labels.csv").unlink()
    with pytest.raises(
        InputError, match=r"every picture .* has a label; if its folders are no classes, write labels\.csv"
    ):
        chosen(folder)
    for path in folder.rglob("*.png"):
        path.rename(folder / path.name)
    shutil.rmtree(folder / "day")
    shutil.rmtree(folder / "night")
    assert len(paths(chosen(folder))) == KINDS * EACH, "pictures alone need no file"


def command(*arguments: str | Path) -> str:
    completed = miniature.call("suggest", *arguments)
    assert completed.code == 0, completed.err
    return completed.out


def filled_in(table: Path) -> None:
    """Answer a suggestions.csv with the colors that the names tell."""
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    for row in rows:
        row["label"] = "rgb"[int(row["path"].split("/")[1][0])]
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_answers_of_one_round_are_the_labels_of_the_next(tmp_path: Path) -> None:
    folder, runs = tree(tmp_path / "photos"), tmp_path / "runs"
    printed = command(folder, "--n", "10", "--runs", runs)
    assert "10 of 36 pictures to label next, 2 of them drawn at random" in printed
    table = runs / "suggest-photos/suggestions.csv"
    first = json.loads((runs / "suggest-photos/suggestions.json").read_text())
    filled_in(table)
    printed = command(folder, "--n", "10", "--runs", runs, "--answers", table)
    assert "10 have a label" in printed
    labels = read_labels(folder / "labels.csv")
    assert len(labels) == KINDS * EACH, "a run uses those without a label, too"
    answered = {path: label.how for path, label in labels.items() if label.name}
    assert answered == {entry["path"]: entry["how"] for entry in first["suggestions"]}
    second = json.loads((runs / "suggest-photos/suggestions.json").read_text())
    assert not answered.keys() & {entry["path"] for entry in second["suggestions"]}
    assert {entry["guess"] for entry in second["suggestions"]} <= set("rgb")


def test_answers_about_other_pictures_are_refused(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    answers = tmp_path / "answers.csv"
    answers.write_text("path,label,how\nelsewhere.png,r,random\n")
    completed = miniature.call("suggest", folder, "--runs", tmp_path / "runs", "--answers", answers)
    assert completed.code == 2
    assert "elsewhere.png is no picture of" in completed.err
    assert read_labels(folder / "labels.csv") == {}


def test_run_suggests_from_its_unlabeled_images(project_copy: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "usable", lambda subject: subject.sources)
    outcome = suggest(project_copy.run, 50, runs=project_copy.runs)
    assert sum(outcome.record.labels.values()) == 20
    assert len(paths(outcome)) == 19, "of 20 without a label two have stripes that are near-copies"
    assert outcome.record.sources == ("first", "second")
    assert outcome.record.more is not None and outcome.record.more.labels == 20
    assert not any("test" in path for path in paths(outcome))
    by_recipe = suggest(project_copy.recipe, 50, runs=project_copy.runs)
    assert paths(by_recipe) == paths(outcome)


def test_recipe_without_a_label_is_suggested_from(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
    write_labels(folder / "labels.csv", dict.fromkeys(names, Label()))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: colors\ndata: {kind: csv, file: photos/labels.csv}\nstudent: {families: {micro: {width: 4}}}\n"
    )
    outcome = suggest(recipe, 5, runs=tmp_path / "runs")
    assert len(paths(outcome)) == 5


def test_wrong_inputs_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: colors\ndata: {kind: csv, file: x.csv}\nstudents: {}\n")
    folder = tree(tmp_path / "photos")
    for arguments, message in (
        ((tmp_path / "nowhere",), "nowhere"),
        ((tmp_path / "recipe.yaml",), "recipe.yaml:3"),
        ((folder, "--strategy", "hering"), "--strategy hering: is unknown; did you mean herding?"),
    ):
        completed = miniature.call("suggest", *arguments, "--runs", tmp_path / "runs")
        assert completed.code == 2, completed
        assert message in completed.err


def sorted_tree(root: Path) -> Path:
    """root/{dark,light}/N.png with labels by their folders, and root/unlabeled/N.png."""
    squares = iter(textures.squares(22 * textures.textures(9, 0)))
    for name in ("dark", "light", "unlabeled"):
        for row in range(3):
            save(next(squares), root / name / f"{row}.png")
    return root


def test_first_answers_keep_the_labels_of_class_folders(tmp_path: Path) -> None:
    folder, answers = sorted_tree(tmp_path / "photos"), tmp_path / "answers.csv"
    write_labels(answers, {"unlabeled/0.png": Label(name="light", how="suggested")})
    assert answer(subject_of(folder), answers) == 1
    labels = read_labels(folder / "labels.csv")
    assert labels["dark/1.png"] == Label(name="dark", how="given")
    assert labels["unlabeled/0.png"].name == "light" and labels["unlabeled/1.png"] == Label()


def test_filled_in_list_is_not_written_over(tmp_path: Path) -> None:
    folder, out = sorted_tree(tmp_path / "photos"), tmp_path / "out"
    arguments = ("suggest", folder, "--runs", tmp_path / "runs", "--out", out, "--n", "2")
    assert miniature.call(*arguments).code == 0
    table = out / "suggestions.csv"
    filled = table.read_text(encoding="utf-8").replace(".png,,", ".png,dark,")
    table.write_text(filled.replace(",", ";"), encoding="utf-8")  # as many spreadsheets save it
    completed = miniature.call(*arguments)
    assert completed.code == 2 and "2 labels were filled in, and would be lost" in completed.err
    completed = miniature.call(*arguments, "--answers", table)
    assert "2 labels taken" in completed.err and ".png,dark," not in table.read_text(encoding="utf-8")


def test_broken_class_folders_are_said(tmp_path: Path) -> None:
    folder = sorted_tree(tmp_path / "photos")
    (folder / "scratched").mkdir()
    with pytest.raises(InputError, match=r"scratched: holds no image; .*if its folders are no classes, write labels"):
        chosen(folder)
    (folder / "scratched").rmdir()
    (folder / "labels.csv").write_text("path;label\nunlabeled/0.png;light\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"labels.csv: is no table with the columns path and label"):
        chosen(folder)


def test_name_that_is_not_in_utf8_is_said(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    save(np.zeros((PX, PX, 3), dtype=np.uint8), folder / "plain.png")
    (folder / "plain.png").rename(folder / os.fsdecode(b"\xe9.png"))
    with pytest.raises(InputError, match="the name is not in UTF-8; rename it"):
        chosen(folder)


def test_list_with_unusable_pictures_is_not_written_over(tmp_path: Path) -> None:
    folder, out = sorted_tree(tmp_path / "photos"), tmp_path / "out"
    arguments = ("suggest", folder, "--runs", tmp_path / "runs", "--out", out, "--n", "2")
    assert miniature.call(*arguments).code == 0
    with (out / "suggestions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[0]["how"] = "unusable"
    with (out / "suggestions.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    completed = miniature.call(*arguments)
    assert completed.code == 2 and "1 labels were filled in, and would be lost" in completed.err


def test_blank_pictures_alone_are_said(tmp_path: Path) -> None:
    for level in (0, 100, 200):
        save(np.full((PX, PX, 3), level, dtype=np.uint8), tmp_path / f"photos/{level}.png")
    with pytest.raises(InputError, match=r"photos: all pictures are of one brightness; add some"):
        chosen(tmp_path / "photos")


def test_misspelled_source_of_a_recipe_is_named(tmp_path: Path) -> None:
    folder = sorted_tree(tmp_path / "photos")
    recipe = f"data: {{kind: folder, root: {folder}}}\nsources: [{{name: s, kind: onxx, file: a.onnx}}]\n"
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(EdgeDistillError, match=r"onxx.*did you mean onnx"):
        subject_of(tmp_path / "recipe.yaml")


def test_table_whose_pictures_all_have_a_label_wants_more_pictures(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
    write_labels(folder / "labels.csv", {name: Label(name=str(row % 2)) for row, name in enumerate(names)})
    with pytest.raises(InputError, match=r"every picture that can be labeled has a label; add pictures$"):
        chosen(folder)


def test_list_of_another_folder_with_the_same_name_is_not_taken(tmp_path: Path) -> None:
    first, second = tree(tmp_path / "a/photos"), tree(tmp_path / "b/photos")
    runs = tmp_path / "runs"
    command(first, "--n", "4", "--runs", runs)
    table = runs / "suggest-photos/suggestions.csv"
    filled_in(table)
    completed = miniature.call("suggest", second, "--n", "4", "--runs", runs)
    assert completed.code == 2 and f"`edgedistill suggest {first} --answers {table}` takes them" in completed.err
    completed = miniature.call("suggest", second, "--runs", runs, "--answers", table)
    assert completed.code == 2 and f"suggests pictures of {first}, not of {second}" in completed.err
    assert read_labels(second / "labels.csv") == {}


def test_labels_beyond_the_budget_of_a_recipe_are_not_asked_for_again(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    labels = [f"{name},{'rgb'[int(name.split('/')[1][0])]}" for name in names[:-2]]
    (folder / "labels.csv").write_text("\n".join(["path,label", *labels, *(f"{name}," for name in names[-2:])]))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: few\ndata: {{kind: csv, file: {folder}/labels.csv, labels_per_class: 3}}\n")
    assert set(paths(suggest(recipe, 50, runs=tmp_path / "runs"))) <= set(names[-2:])
