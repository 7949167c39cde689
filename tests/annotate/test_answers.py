"""Answers: on disk at once, undone by the tab that gave them, and never over a label that the tab does not show."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgedistill.annotate import answers as module
from edgedistill.annotate.answers import Answers, ConflictError, class_name
from edgedistill.data.label_file import Label, read_labels, write_labels
from edgedistill.errors import InputError

BOLT, NUT = Label(name="bolt", how="suggested"), Label(name="nut", how="random")
PICTURES = [f"{number}.png" for number in range(40)]


def fresh(folder: Path, **first: Label) -> Answers:
    return Answers(file=folder / "labels.csv", pictures=PICTURES, first=first, classes=[])


def test_change_is_on_disk_with_a_row_for_every_picture(tmp_path: Path) -> None:
    answers = fresh(tmp_path)
    answers.change("a", {"0.png": BOLT}, {})
    labels = read_labels(tmp_path / "labels.csv")
    assert labels == dict.fromkeys(PICTURES, Label()) | {"0.png": BOLT}
    assert answers.current() == labels
    assert answers.classes == ["bolt"]
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"], "no lock and no temporary file is left"


def test_undo_takes_changes_back_one_by_one_and_those_of_the_own_tab(tmp_path: Path) -> None:
    answers = fresh(tmp_path)
    answers.change("a", {"0.png": BOLT}, {})
    answers.change("a", {"0.png": NUT}, {"0.png": BOLT})
    answers.change("a", dict.fromkeys(PICTURES[1:9], BOLT), {})
    answers.change("b", {"9.png": NUT}, {})
    assert answers.undo("c") is None
    for labeled in (2, 2, 1):
        assert answers.undo("a") is not None
        assert sum(bool(label.name) for label in answers.current().values()) == labeled
    assert answers.undo("a") is None
    assert read_labels(answers.file)["9.png"] == NUT


def test_label_of_another_tab_or_program_is_not_replaced(tmp_path: Path) -> None:
    answers = fresh(tmp_path)
    answers.change("a", {"0.png": BOLT}, {})
    with pytest.raises(ConflictError, match=r"0\.png: has got another label meanwhile: bolt"):
        answers.change("b", {"1.png": NUT, "0.png": NUT}, {})
    assert read_labels(answers.file)["1.png"] == Label(), "all or nothing"
    write_labels(answers.file, {"0.png": NUT})
    with pytest.raises(ConflictError):
        answers.undo("a")
    assert answers.undo("a") is None
    assert answers.current() == {"0.png": NUT}


def test_two_sessions_at_once_lose_nothing(tmp_path: Path) -> None:
    sessions = [fresh(tmp_path), fresh(tmp_path)]

    def work(session: Answers, pictures: list[str]) -> None:
        for path in pictures:
            session.change("tab", {path: BOLT}, {})

    threads = [
        threading.Thread(target=work, args=(session, PICTURES[start::2])) for start, session in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_labels(tmp_path / "labels.csv") == dict.fromkeys(PICTURES, BOLT)


def test_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = fresh(tmp_path)
    answers.change("a", {"0.png": BOLT}, {})
    before = answers.file.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            answers.change("a", {"1.png": NUT}, {})
    assert answers.file.read_bytes() == before
    assert answers.current()["1.png"] == Label() and answers.classes == ["bolt"]
    answers.undo("a")
    assert answers.current()["0.png"] == Label(), "the failed change is not in the way"


def test_labels_of_class_folders_are_taken_over(tmp_path: Path) -> None:
    given = Label(name="nut", how="given")
    answers = Answers(
        file=tmp_path / "labels.csv", pictures=["a.png", "b.png"], first={"a.png": given}, classes=["nut"]
    )
    assert answers.current() == {"a.png": given} and not answers.file.exists()
    answers.change("a", {"b.png": BOLT}, {})
    assert read_labels(answers.file) == {"a.png": given, "b.png": BOLT}
    assert answers.classes == ["nut", "bolt"]


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a\0b", "x" * 201, "NaN", "NULL", "\u202etxt"])
def test_names_that_a_table_cannot_hold_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        class_name(text)


@pytest.mark.parametrize("text", ["bolt", " bolt ", "a,b", 'say "x"', "<b>", "\u87ba\u6813", "=1+1", "-1"])
def test_other_names_come_back_from_the_table(tmp_path: Path, text: str) -> None:
    write_labels(tmp_path / "labels.csv", {"a.png": Label(name=class_name(text), how="random")})
    assert read_labels(tmp_path / "labels.csv")["a.png"].name == text.strip()


def test_every_write_is_read_again_by_its_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = fresh(tmp_path)
    answers.change("a", {"0.png": BOLT}, {})

    def refused(file: Path) -> dict[str, Label]:
        raise AssertionError("an unchanged file is not read for every key")

    monkeypatch.setattr(module.label_file, "read_labels", refused)
    answers.change("a", {"1.png": BOLT}, {})
    assert answers.current()["1.png"] == BOLT


def test_label_of_a_path_with_a_dot_survives_another_answer(tmp_path: Path) -> None:
    answers = fresh(tmp_path)
    answers.file.write_text("path,label,how\n./0.png,nut,random\n")
    assert answers.current() == {"0.png": NUT}
    with pytest.raises(ConflictError):
        answers.change("a", {"0.png": BOLT}, {})
    answers.change("a", {"1.png": BOLT}, {})
    assert read_labels(answers.file) == dict.fromkeys(PICTURES, Label()) | {"0.png": NUT, "1.png": BOLT}
