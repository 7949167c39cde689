"""The page's requests: what a session shows, and what each answer leaves in labels.csv."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill.annotate.batch import batch
from edgedistill.data.label_file import Label, read_labels, write_labels
from edgedistill.errors import InputError
from edgedistill.labeling import sources
from tests.helpers import miniature
from tests.helpers.annotation import NEW, TAB, Client, photos, served
from tests.helpers.miniature import Project


@pytest.fixture(autouse=True)
def no_installed_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pixels stand in for nets, which take seconds to load."""
    monkeypatch.setattr(sources, "PACKAGES", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos")


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    with served(batch(folder, 10, folder.parent / "runs")) as fresh:
        fresh.enter()
        yield fresh


def pixels(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


def test_answers_keep_how_the_picture_was_chosen(client: Client, folder: Path) -> None:
    before = pixels(folder)
    queue = client.get("/state").json["queue"]
    assert len(queue) == 10 and {entry["label"]["name"] for entry in queue} == {""}
    for entry in queue[:5]:
        assert client.label(entry["path"], "bolt").status == 200
    body = {"tab": TAB, "path": queue[5]["path"], "unusable": True, "expected": NEW}
    assert client.post("/label", body).json["labels"] == {queue[5]["path"]: {"name": "", "how": "unusable"}}
    labels = read_labels(folder / "labels.csv")
    hows = [labels[entry["path"]].how for entry in queue]
    assert hows == ["suggested"] * 4 + ["random", "unusable"] + [""] * 4
    assert len(labels) == 36 and pixels(folder) == before


def test_new_class_gets_the_next_key_and_stays(client: Client) -> None:
    queue = client.get("/state").json["queue"]
    for entry, name in zip(queue, ["nut", "bolt", "nut"], strict=False):
        classes = client.label(entry["path"], name).json["classes"]
    assert classes == [{"name": "nut", "labels": 2}, {"name": "bolt", "labels": 1}]
    assert client.label(queue[3]["path"], " NaN ").status == 400
    assert client.label(queue[3]["path"], "").json["error"].startswith("the name of the class is empty")


def test_second_tab_does_not_overwrite_the_first(client: Client, folder: Path) -> None:
    path = client.get("/state").json["queue"][0]["path"]
    assert client.label(path, "bolt", tab="the first tab").status == 200
    refused = client.label(path, "nut", tab="the second tab")
    assert refused.status == 409 and "has got another label meanwhile: bolt" in refused.json["error"]
    assert read_labels(folder / "labels.csv")[path].name == "bolt"
    assert client.post("/undo", {"tab": "the second tab"}).json["labels"] == {}
    seen = {"name": "bolt", "how": "suggested"}
    assert client.label(path, "nut", tab="the second tab", expected=seen).status == 200, "it shows the label now"
    assert client.post("/undo", {"tab": "the first tab"}).status == 409
    assert read_labels(folder / "labels.csv")[path].name == "nut"


def test_cluster_is_accepted_at_once_and_undone_at_once(client: Client, folder: Path) -> None:
    entry = client.get("/state").json["queue"][0]
    client.label(entry["path"], "bolt")
    paths = client.get(f"/cluster?number={entry['cluster']}").json["paths"]
    assert len(paths) > 2 and entry["path"] not in paths
    body = {"tab": TAB, "cluster": entry["cluster"], "name": "nut", "paths": paths[1:]}
    assert set(client.post("/label-cluster", body).json["labels"]) == set(paths[1:])
    labels = read_labels(folder / "labels.csv")
    assert {path for path, label in labels.items() if label == Label(name="nut", how="bulk")} == set(paths[1:])
    assert client.get(f"/cluster?number={entry['cluster']}").json["paths"] == paths[:1]
    assert client.post("/label-cluster", body).status == 409, "they have labels"
    assert set(client.post("/undo", {"tab": TAB}).json["labels"]) == set(paths[1:])
    assert [path for path, label in read_labels(folder / "labels.csv").items() if label.name] == [entry["path"]]
    others = client.get(f"/cluster?number={0 if entry['cluster'] else 1}").json["paths"]
    assert others and client.post("/label-cluster", {**body, "paths": others}).status == 404, "of another cluster"


def test_close_ends_the_server(folder: Path) -> None:
    with served(batch(folder, 3, folder.parent / "runs")) as client:
        client.enter()
        assert client.post("/close", {}).status == 200
        with pytest.raises(OSError):
            for _ in range(1000):
                client.get("/state")


def test_labels_are_what_a_recipe_and_the_next_session_take(client: Client, folder: Path) -> None:
    for entry in client.get("/state").json["queue"]:
        client.label(entry["path"], "rgb"[int(entry["path"][0])])
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(
        "name: colors\ndata: {kind: csv, file: photos/labels.csv}\nstudent: {families: {micro: {width: 4}}}\n"
    )
    checked = miniature.call("check", recipe)
    assert checked.code == 0, checked.err
    for path in (recipe, folder):
        following = batch(path, 10, folder.parent / "runs")
        assert following.answers.classes == ["b", "g", "r"]
        assert {entry.guess for entry in following.queue} <= set("rgb") and following.queue[0].sure
        assert following.answers.file == folder / "labels.csv"


def test_class_folders_are_taken_over_and_splits_are_not(tmp_path: Path) -> None:
    flat = photos(tmp_path / "flat")
    root = tmp_path / "root"
    for path in flat.glob("*.png"):
        part = "unlabeled" if int(path.stem[2:]) > 5 else f"train-{path.stem[0]}"
        (root / part).mkdir(parents=True, exist_ok=True)
        path.rename(root / part / path.name)
    prepared = batch(root, 5, tmp_path / "runs")
    with served(prepared) as client:
        client.enter()
        name = prepared.queue[0].path
        assert name.startswith("unlabeled/")
        assert client.label(name, "train-0").status == 200
    labels = read_labels(root / "labels.csv")
    assert labels["train-1/1-00.png"] == Label(name="train-1", how="given")
    assert sum(label.how == "given" for label in labels.values()) == 18
    (root / "labels.csv").unlink()
    for kind in "012":
        (root / "train" / kind).mkdir(parents=True)
        (root / "test" / kind).mkdir(parents=True)
        for path in (root / f"train-{kind}").glob("*.png"):
            path.rename(root / ("test" if path.stem.endswith("5") else "train") / kind / path.name)
        (root / f"train-{kind}").rmdir()
    with pytest.raises(InputError, match=r"has splits, which labels\.csv cannot hold"):
        batch(root, 5, tmp_path / "runs")


def test_file_with_other_columns_is_refused(folder: Path) -> None:
    file = folder / "labels.csv"
    file.write_text("path,label,split\n0-00.png,bolt,test\n")
    completed = miniature.call("annotate", folder, "--runs", folder.parent / "runs")
    assert completed.code == 2 and "has the column split, which would be lost" in completed.err
    assert "split" in file.read_text()


def test_run_whose_data_is_no_table_is_refused(project_copy: Project) -> None:
    completed = miniature.call("annotate", project_copy.run, "--runs", project_copy.runs)
    assert completed.code == 2 and "its data is no labels.csv" in completed.err


def test_port_that_is_taken_is_one_line(client: Client, folder: Path) -> None:
    write_labels(folder / "labels.csv", {})
    completed = miniature.call("annotate", folder, "--port", str(client.port), "--runs", folder.parent / "runs")
    assert completed.code == 2 and f"--port {client.port}: Address already in use" in completed.err


def test_missing_extra_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    completed = miniature.call("annotate", folder)
    assert completed.code == 2
    assert completed.err == "annotate: starlette is not installed; pip install 'edgedistill[annotate]'\n"


def class_folders(root: Path, *names: str) -> Path:
    """root/NAME/N.png: the pictures of `photos` with a folder for each color."""
    photos(root)
    for path in sorted(root.glob("*.png")):
        target = root / names[int(path.name[0])] / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    return root


def test_class_that_a_table_cannot_hold_is_said_before_the_first_key(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", "None", "crack", "unlabeled")
    with pytest.raises(InputError, match="None is the text of an empty cell, and no class; rename the class"):
        batch(folder, 5, tmp_path / "runs")
    assert not (folder / "labels.csv").exists()


def test_no_picture_left_to_label_is_said(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", "bolt", "nut", "unlabeled")
    for path in (folder / "unlabeled").iterdir():
        path.write_bytes((folder / "bolt/0-00.png").read_bytes())
    with pytest.raises(InputError, match=r"no picture is left to label: .*counted once: 12 pictures"):
        batch(folder, 5, tmp_path / "runs")


def test_key_of_a_class_writes_the_name_that_the_labels_have(folder: Path) -> None:
    names = ["Mu\u0308ll", "\u30cf\u30c8\u3000\u30e1\u30b9"]  # decomposed, and with a space that is not printable
    pictures = sorted(path.name for path in folder.glob("*.png"))
    write_labels(folder / "labels.csv", {path: Label(name=name) for path, name in zip(pictures, names, strict=False)})
    with served(batch(folder, 4, folder.parent / "runs")) as client:
        client.enter()
        queue = client.get("/state").json["queue"]
        for entry, name in zip(queue, names, strict=False):
            assert client.label(entry["path"], name).status == 200
    assert {label.name for label in read_labels(folder / "labels.csv").values()} == {"", *names}
