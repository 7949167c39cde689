"""Recall, precision and confusions: figures by hand, classes without an image, many classes, hostile names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedistill.errors import InputError
from edgedistill.labels.protocol import unit_accuracy
from edgedistill.records import Accuracy, FoldScore, OutOfFold
from edgedistill.report import matrix, render, unknown
from edgedistill.report.blocks import WIDTH, interval
from edgedistill.report.card import markdown
from edgedistill.report.classes import blocks, confusions
from edgedistill.report.facts import read
from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.directory import Run
from edgedistill.run.files import read_json, write_json, write_record
from tests.helpers.report_runs import SPEC, accuracy, make_run, with_answers

HOSTILE = ("</td><script>alert(1)</script> | x", "\u202egnp.exe\u2066\n\nsecond | line\x00", "$x_1^2$ \\frac", " \t")


def run_with(folder: Path, classes: tuple[str, ...], **predictions: list[int]) -> Run:
    run = make_run(folder, classes=classes)
    np.savez(run / "verify/predictions.npz", **{name.replace("_", "-"): labels for name, labels in predictions.items()})
    return run


def test_figures_by_hand(tmp_path: Path) -> None:
    # class 0: 2 of 3 found, 2 of 2 right; class 1: 1 of 1 found, 1 of 3 right; class 2: no test image, never predicted;
    # class 3: 0 of 1 found, never predicted
    run = run_with(tmp_path, ("a", "b", "c", "d"), labels=[0, 0, 0, 1, 3], int8_cpu=[0, 0, 1, 1, 1])
    (confusion,) = confusions(read(run))
    assert [(score.recall.hits, score.recall.n, score.recall.share) for score in confusion.classes] == [
        (2, 3, 2 / 3),
        (1, 1, 1.0),
        (0, 0, None),
        (0, 1, 0.0),
    ]
    assert [score.precision.share for score in confusion.classes] == [1.0, 1 / 3, None, None]
    # Wilson with z = 1.96: (2/3 + z2/6 -+ z sqrt(2/27 + z2/36)) / (1 + z2/3)
    assert confusion.classes[0].recall.ci95 == pytest.approx((0.2077, 0.9385), abs=1e-4)
    assert confusion.classes[2].recall.ci95 == (0.0, 1.0)
    assert confusion.cells == ((0, 0, 2), (0, 1, 1), (1, 1, 1), (3, 1, 1))
    assert confusion.mistakes() == [(3, 1, 1), (0, 1, 1)]
    table, mistakes = blocks(read(run))
    assert table.rows[2] == ("c", "0", "-", "-") and table.rows[0][2] == "66.7 % [20.8, 93.9]"
    assert mistakes.rows == (("d", "b", "1", "100.0 %"), ("a", "b", "1", "33.3 %"))


def test_fp32_alone_where_it_is_the_default(tmp_path: Path) -> None:
    run = run_with(tmp_path, ("a", "b"), labels=[0, 1], fp32=[0, 1], int8_cpu=[1, 1])
    kept = read_json(run / "keep/kept.json")
    kept[0] |= {"artefact": "fp32", "precision": "fp32"}
    write_json(run / "keep/kept.json", kept)
    assert [confusion.artefact for confusion in confusions(read(run))] == ["fp32"]
    assert list(matrix.pictures(read(run))) == ["classes"]
    assert blocks(read(run))[1].lines == ("fp32: all 2 test images are right",)


def test_many_classes_show_the_lowest_recall_and_json_has_all(tmp_path: Path) -> None:
    names, labels = tuple(f"k{index:02d}" for index in range(50)), np.repeat(np.arange(50), 100)
    predicted = labels.copy()
    for index in range(50):  # class i has 2 i mistakes, all of them taken for its neighbor
        predicted[100 * index : 102 * index] = (index + 1) % 50
    run = run_with(tmp_path, names, labels=labels.tolist(), int8_cpu=predicted.tolist(), fp32=labels.tolist())
    table, mistakes = blocks(read(run))
    assert [row[0] for row in table.rows] == [f"k{index}" for index in range(49, 29, -1)]
    assert "the 20 of 50 with the lowest recall" in table.note and "report.json" in table.lines[0]
    assert mistakes.rows[0] == ("k49", "k00", "98", "98.0 %", "0") and len(mistakes.rows) == 10
    assert matrix.pictures(read(run)) == {}
    render.write(run)
    entry = read_json(run / "report.json")["confusions"][0]
    assert len(entry["classes"]) == 50 and len(entry["cells"]) == 50 + 49
    assert sum(images for _, _, images in entry["cells"]) == 5000


def test_hostile_names_stay_in_their_cells(tmp_path: Path) -> None:
    run = run_with(tmp_path, HOSTILE, labels=[0, 1, 2, 3], fp32=[0, 1, 2, 3], int8_cpu=[1, 2, 3, 0])
    text = render.text(run)
    lines = text[text.index("CLASSES") : text.index("UNKNOWN")].splitlines()
    assert len(lines) == 3 + 4 + 1 + 3 + 4 + 1 and max(map(len, lines)) <= WIDTH
    assert not set("\x00\u202e\u2066") & set(text)
    page = render.html(run)
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page
    assert not set("\x00\u202e\u2066") & set(page)
    assert "?gnp.exe? second | line?" in page and "$x_1^2$ \\frac" in page
    assert [row[0] for row in blocks(read(run))[0].rows][3] == "class 3"


def test_run_without_recorded_labels_names_the_command(tmp_path: Path) -> None:
    run = run_with(tmp_path, ("a", "b"), fp32=[0, 1], int8_cpu=[0, 1])
    assert confusions(read(run)) == () and matrix.pictures(read(run)) == {}
    assert "labels of the test images are not recorded: not run yet: edgedistill export" in render.text(run)
    assert read_json(render.write(run)[0])["confusions"] == []


def test_images_without_a_label_are_not_scored(tmp_path: Path) -> None:
    run = run_with(tmp_path / "some", ("a", "b"), labels=[0, -1, 1, -1], fp32=[0, 1, 1, 0], int8_cpu=[0, 1, 0, 0])
    assert [(confusion.n, confusion.cells) for confusion in confusions(read(run))] == [
        (2, ((0, 0, 1), (1, 0, 1))),
        (2, ((0, 0, 1), (1, 1, 1))),
    ]
    run = run_with(tmp_path / "none", ("a", "b"), labels=[-1, -1], fp32=[0, 1], int8_cpu=[0, 1])
    assert confusions(read(run)) == () and "CLASSES\n  no test image has a label\n" in render.text(run)
    assert "fewest test images" not in markdown(read(run))


@pytest.mark.parametrize("arrays", [{"labels": [0, 1], "fp32": [0]}, {"labels": [0.5]}, {"labels": [-2]}, {}])
def test_damaged_predictions_are_one_line(tmp_path: Path, arrays: dict[str, list[float]]) -> None:
    run = make_run(tmp_path)
    np.savez(run / "verify/predictions.npz", **{name: np.array(values) for name, values in arrays.items()})
    with pytest.raises(InputError, match=r"predictions\.npz: is not labels of the test images"):
        read(run)
    (run / "verify/predictions.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"predictions\.npz: cannot be read"):
        read(run)


def test_folds_are_not_called_test_images(tmp_path: Path) -> None:
    run = run_with(tmp_path, ("a", "b"), labels=[-1, -1], fp32=[0, 1], int8_cpu=[0, 1])
    (run / "folds").mkdir()
    scores = tuple(FoldScore(student=SPEC, trained=3, fp32=accuracy(0.9, 2)) for _ in range(2))
    record = OutOfFold(folds=scores, labels=4, unscored=(), fp32=accuracy(0.9, 4), temperature=1.0)
    write_record(run / "folds/folds.json", record)
    answers_NC = np.array([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    arrays = {"rows": np.arange(4), "labels": np.array([0, 0, 1, 0]), "fp32": answers_NC, "int8": answers_NC}
    np.savez(run / "folds/answers.npz", **arrays)
    facts = read(run)
    assert blocks(facts)[0].note.startswith("int8-cpu on 4 labeled images out of fold, ")
    card, page = markdown(facts), render.html(run)
    assert (
        "each by one of 2 students that was trained without it; the student in this bundle is trained on all 4 labels, "
        "each of those on 3." in card
    )
    assert "choosing or calibrating" not in card and "test images" not in card
    assert "test images" not in page and "is class -1" not in page
    assert "95 % intervals that know that the students share labels" in blocks(facts)[0].note
    assert blocks(facts)[0].rows[0][2] == shown(unit_accuracy(np.zeros(3), np.array([0, 0, 1]), np.arange(3), 2))
    write_json(run / "data.json", read_json(run / "data.json") | {"protocol": "holdout"})  # there are more labels now
    later = read(run)
    assert later.out_of_fold is None and later.predictions["labels"].tolist() == [-1, -1]


def shown(accuracy: Accuracy) -> str:
    return interval(accuracy, "top1")


def test_intervals_count_groups(tmp_path: Path) -> None:
    """Recall, precision and answers have the accuracy's interval, and a device says that it does not know groups."""
    labels_N, units_N = np.arange(60) % 2, np.arange(60) // 10
    predicted_N = np.where(units_N < 2, 1 - labels_N, labels_N)
    run = run_with(tmp_path, ("a", "b"), labels=labels_N.tolist(), int8_cpu=predicted_N.tolist())
    assert "the interval counts images" not in render.text(run)
    with_answers(run)
    answers = {"labels": labels_N, "predicted": predicted_N, "units": units_N, "softmax": np.full(60, 0.9)}
    save_arrays(artifacts.UNKNOWN_ANSWERS.path_in(run), **answers, confidence=np.linspace(1.0, 0.5, 60))
    table, headline = blocks(read(run))[0], unit_accuracy(labels_N, predicted_N, units_N)
    for column, member_N in ((2, labels_N == 0), (3, predicted_N == 0)):
        is_right_N = labels_N[member_N] == predicted_N[member_N]
        cell = shown(unit_accuracy(np.zeros(30), 1 - is_right_N, units_N[member_N]))
        assert table.rows[0][column] == cell != "66.7 % [48.8, 80.8]"
    assert "95 % intervals that count groups" in table.note
    (answered,) = unknown.blocks(read(run))
    assert answered.rows[-5] == ("100.0 %", "60", shown(headline)) and "that count groups" in answered.note
    everything = render.collect(run)["unknown"]["answers"]["curve"][-1]
    assert everything["ci95"] == pytest.approx(headline.top1_ci95)
    assert "on 500 images there (the interval counts images, not groups)" in " ".join(render.text(run).split())


def test_card_of_folds_says_what_trained(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    recorded = read_json(run / "data.json") | {"labeled": 18, "val": 6, "unlabeled": 0, "test": 0}
    write_json(run / "data.json", recorded)
    scores = tuple(FoldScore(student=SPEC, trained=trained, fp32=accuracy(0.9, 5)) for trained in (19, 19, 20))
    record = OutOfFold(folds=scores, labels=24, unscored=(), fp32=accuracy(0.9, 24), temperature=1.0)
    (run / "folds").mkdir()
    write_record(run / "folds/folds.json", record)
    card = markdown(read(run))
    assert "images: 24 with a label to train on (6 of them to choose by before)." in card
    assert "trained on all 24 labels, each of those on 19 to 20." in card and "18 with a label" not in card
    write_json(run / "data.json", recorded | {"labeled": 24, "val": 0})
    assert "images: 24 with a label to train on." in markdown(read(run))


def test_card_lists_no_zero_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    recorded = read_json(run / "data.json") | {"labeled": 44, "val": 0, "unlabeled": 0, "test": 12}
    write_json(run / "data.json", recorded)
    assert "images: 44 with a label to train on, 12 to test." in markdown(read(run))
