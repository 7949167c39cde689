"""Label Studio: suggestions become tasks that it can import, and its export becomes labels."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from edgedistill.data.label_file import Label, read_labels
from edgedistill.errors import InputError
from edgedistill.labeling import label_studio
from tests.helpers import miniature
from tests.labeling.test_suggest import tree


def annotated(task: dict[str, Any], *names: str, skipped: bool = False) -> dict[str, Any]:
    """The task as Label Studio exports it after one annotator chose `names`."""
    choice = {"id": "a1", "from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [*names]}}
    annotation = {"id": 7, "result": [choice] if names else [], "was_cancelled": skipped, "lead_time": 1.5}
    return {"id": 1, "project": 3, **task, "annotations": [annotation]}


def export(file: Path, tasks: list[dict[str, Any]]) -> Path:
    file.write_text(json.dumps(tasks), encoding="utf-8")
    return file


def test_answers_of_label_studio_are_the_labels_of_the_next_round(tmp_path: Path) -> None:
    folder, out = tree(tmp_path / "photos"), tmp_path / "out"
    arguments = ("suggest", folder, "--runs", tmp_path / "runs", "--out", out, "--n", "10", "--label-studio")
    completed = miniature.call(*arguments)
    assert completed.code == 0 and f"Label Studio: {out / label_studio.TASKS}" in completed.out
    tasks = json.loads((out / label_studio.TASKS).read_text(encoding="utf-8"))
    assert len(tasks) == 10 and "predictions" not in tasks[0]
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d={tasks[0]['data']['path']}"
    answers = [annotated(task, "rgb"[int(task["data"]["path"].split("/")[1][0])]) for task in tasks[:9]]
    file = export(tmp_path / "export.json", [*answers, annotated(tasks[9], "r", skipped=True)])
    completed = miniature.call(*arguments, "--answers", file)
    assert completed.code == 0 and f"9 labels taken from {file}" in completed.err
    labels = {path: label.how for path, label in read_labels(folder / "labels.csv").items() if label.name}
    assert labels == {task["data"]["path"]: task["data"]["how"] for task in tasks[:9]}
    guess = json.loads((out / label_studio.TASKS).read_text(encoding="utf-8"))[0]["predictions"][0]
    assert guess["result"][0]["value"]["choices"][0] in "rgb" and 0 < guess["score"] <= 1
    controls = ET.parse(out / label_studio.CONFIGURATION).getroot().find("Choices")
    assert controls is not None and {choice.get("value") for choice in controls} == set("rgb")


def test_configuration_holds_any_class_name() -> None:
    root = ET.fromstring(label_studio.configuration(['3" <bolt> & nut']))
    assert [choice.get("value") for choice in root.iter("Choice")] == ['3" <bolt> & nut']
    assert not list(ET.fromstring(label_studio.configuration([])).iter("Choice"))


def test_unknown_way_of_a_label_counts_as_given(tmp_path: Path) -> None:
    task = {"data": {"path": "a.png", "how": "by hand"}}
    assert label_studio.read_export(export(tmp_path / "e.json", [annotated(task, "r")])) == {
        "a.png": Label(name="r", how="given")
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "is no JSON"),
        ('{"data": 1}', "is no export of Label Studio"),
        ('[{"image": "/data/a.png", "label": "r", "id": 1}]', "is no export of Label Studio: 0.data: Field required"),
        ("[]", "no task has an answer"),
        (
            '[{"data": {"path": "a"}, "annotations": [{"result": [{"value": {"choices": "rg"}}]}]}]',
            "choices: Input should be a valid list",
        ),
        (json.dumps([annotated({"data": {"path": "a.png"}}, "r", "g")]), "a.png has 2 classes: g, r"),
        (
            json.dumps([annotated({"data": {"path": "a.png"}}, name) for name in "rg"]),
            "a.png has 2 classes: g, r",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "export.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        label_studio.read_export(file)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        label_studio.read_export(tmp_path / "none.json")
