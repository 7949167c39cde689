"""The data kinds built on `datasets` and torchvision, offline and on files that the tests write."""

from __future__ import annotations

import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import UnidentifiedImageError

from edgedistill.data import datasets
from edgedistill.data.hubs import split_options
from edgedistill.errors import InputError
from edgedistill.labels.draws import UNLABELED
from edgedistill.recipe.data_section import Data
from tests.helpers.trees import mnist_tree, noise, write_picture


def section(kind: str, **options: object) -> Data:
    return Data.model_validate({"kind": kind, **options})


def png(name: str) -> bytes:
    stream = io.BytesIO()
    noise(name).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The `datasets` library with its cache in the test's folder."""
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    return library


def write_parquet(library: Any, path: Path, labels: list[Any], label_type: Any, broken: int = -1) -> None:
    folder, split = path.parent, path.name
    folder.mkdir(parents=True, exist_ok=True)
    cells = [
        {"bytes": b"no picture" if row == broken else png(f"{split}{row}"), "path": None} for row in range(len(labels))
    ]
    features = library.Features({"image": library.Image(), "label": label_type})
    part = library.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    part.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_hf_parquet_with_class_names(hub: Any, tmp_path: Path) -> None:
    names = hub.ClassLabel(names=["cat", "dog"])
    write_parquet(hub, tmp_path / "pets/train", [0, 1, 1, -1], names, broken=2)
    write_parquet(hub, tmp_path / "pets/test", [1, 0], names)
    dataset = datasets.listing(section("hf", path="pets"), tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels_N.tolist() == [0, 1, 1, UNLABELED]
    assert dataset.test is not None and dataset.test.labels_N.tolist() == [1, 0]
    with dataset.train.load(1) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(noise("train1")))
    with pytest.raises(UnidentifiedImageError):
        dataset.train.load(2)
    assert dataset.fingerprint == datasets.fingerprint(section("hf", path="pets"), tmp_path)


def test_classes_without_any_image_are_dropped(hub: Any, tmp_path: Path) -> None:
    names = hub.ClassLabel(names=["none", "cat", "dog", "never"])
    write_parquet(hub, tmp_path / "pets/train", [1, 2, -1], names)
    write_parquet(hub, tmp_path / "pets/test", [2], names)
    dataset = datasets.listing(section("hf", path="pets"), tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels_N.tolist() == [0, 1, UNLABELED]
    assert dataset.test is not None and dataset.test.labels_N.tolist() == [1]


def test_hf_text_labels_and_no_test_split(hub: Any, tmp_path: Path) -> None:
    write_parquet(hub, tmp_path / "set/train", ["b", "a", None], hub.Value("string"))
    dataset = datasets.listing(section("hf", path="set", test=None), tmp_path)
    assert dataset.classes == ("a", "b") and dataset.test is None
    assert dataset.train.labels_N.tolist() == [1, 0, UNLABELED]


def test_hf_val_is_read_where_it_is_named(hub: Any, tmp_path: Path) -> None:
    for part, labels in (("train", ["b", "a"]), ("validation", ["a"]), ("test", ["b"])):
        write_parquet(hub, tmp_path / f"set/{part}", labels, hub.Value("string"))
    without = datasets.listing(section("hf", path="set"), tmp_path)
    assert without.val is None
    assert without.notes == ("data: the split validation is not used; set data.val to it to validate on it",)
    dataset = datasets.listing(section("hf", path="set", val="validation"), tmp_path)
    assert dataset.val is not None and dataset.val.labels_N.tolist() == [0]
    with dataset.val.load(0) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(noise("validation0")))
    assert dataset.notes == ("data: val is the data set's own, 1 images; data.val_fraction does not apply",)
    assert dataset.fingerprint == datasets.fingerprint(section("hf", path="set", val="validation"), tmp_path)
    assert dataset.fingerprint != without.fingerprint
    for options in ({"val": "test"}, {"val": "train"}, {"test": "train"}):
        with pytest.raises(InputError, match="train, test and val name one split twice"):
            datasets.listing(section("hf", path="set", **options), tmp_path)


def test_hf_error_lists_available_splits_and_columns(hub: Any, tmp_path: Path) -> None:
    write_parquet(hub, tmp_path / "set/train", ["a", "b"], hub.Value("string"))
    with pytest.raises(InputError, match=r"has no split test; it has train; set data\.train"):
        datasets.listing(section("hf", path="set"), tmp_path)
    with pytest.raises(InputError, match=r"no column lable; did you mean label\?"):
        datasets.listing(section("hf", path="set", test=None, label="lable"), tmp_path)
    write_parquet(hub, tmp_path / "set/test", ["a", "c"], hub.Value("string"))
    with pytest.raises(InputError, match="split test, row 1: train has no class c"):
        datasets.listing(section("hf", path="set"), tmp_path)


def test_hf_label_that_is_no_class_is_named(hub: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    table = pa.table({"image": [{"bytes": png(str(row)), "path": None} for row in range(3)], "label": [0, 1, -7]})
    (tmp_path / "set").mkdir()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "set/train.parquet")
    with pytest.raises(InputError, match="data: split train, row 2: train has no class -7"):
        datasets.listing(section("hf", path="set", test=None), tmp_path)


def test_hf_number_that_is_missing_is_no_label(hub: Any, tmp_path: Path) -> None:
    write_parquet(hub, tmp_path / "set/train", [0.0, float("nan"), 1.0], hub.Value("float64"))
    dataset = datasets.listing(section("hf", path="set", test=None), tmp_path)
    assert dataset.classes == ("0.0", "1.0")
    assert dataset.train.labels_N.tolist() == [0, UNLABELED, 1]


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([[1], [2]], "list", "the column label holds a list, not a label"),
        ([b"a", b"b"], "binary", "the column label holds a bytes, not a label"),
        (["9" * 5000, "1"], "string", "the column label holds a text of 5000 characters, not a label"),
    ],
)
def test_hf_column_without_labels_is_named(
    hub: Any, tmp_path: Path, labels: list[Any], kind: str, message: str
) -> None:
    feature = hub.List(hub.Value("int64")) if kind == "list" else hub.Value(kind)
    write_parquet(hub, tmp_path / "set/train", labels, feature)
    with pytest.raises(InputError, match=message):
        datasets.listing(section("hf", path="set", test=None), tmp_path)


def test_hf_path_that_no_file_can_have_is_named(hub: Any, tmp_path: Path) -> None:
    write_path_table(hub, tmp_path / "set", ["x" * 300, "1.png"])
    with pytest.raises(InputError, match=r"split train, row 0: file: .*/x+ is no file; write paths that start"):
        datasets.listing(section("hf", path="set", image="file", test=None), tmp_path)
    with pytest.raises(InputError, match=r"data\.path: x+"):
        datasets.listing(section("hf", path="x" * 300), tmp_path)


def write_path_table(library: Any, folder: Path, cells: list[Any]) -> None:
    table = library.Dataset.from_dict({"file": cells, "label": ["a", "b"] * (len(cells) // 2)})
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "train.parquet")


def test_hf_paths_in_a_text_column_start_at_the_data_directory(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere/photos").mkdir(parents=True)
    for path in ("set/photos/0.png", "elsewhere/1.png", "elsewhere/photos/0.png"):
        write_picture(tmp_path / path, path)
    monkeypatch.chdir(tmp_path / "elsewhere")  # a file of the same relative path lies here, and is not meant
    write_path_table(hub, tmp_path / "set", ["photos/0.png", str(tmp_path / "elsewhere/1.png"), None, ""])
    dataset = datasets.listing(section("hf", path="set", image="file", test=None), tmp_path)
    for row, path in enumerate(("set/photos/0.png", "elsewhere/1.png")):
        with dataset.train.load(row) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(noise(path)))
    for row in (2, 3):
        with pytest.raises(ValueError, match="the cell is empty"):
            dataset.train.load(row)


def test_hf_column_without_images_is_named(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_path_table(hub, tmp_path / "set", ["0.png", "1.png"])
    options = section("hf", path="set", image="file", test=None)
    with pytest.raises(InputError, match=r"split train, row 0: file: .*set/0\.png is no file; write paths that start"):
        datasets.listing(options, tmp_path)
    write_path_table(hub, tmp_path / "numbers", [3, 4])
    with pytest.raises(
        InputError, match=r"split train: the column file holds no images \(.+\); set data\.image"
    ) as error:
        datasets.listing(section("hf", path="numbers", image="file", test=None), tmp_path)
    assert "\n" not in str(error.value)
    loaded = hub.load_dataset(str(tmp_path / "set"))
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: loaded)
    with pytest.raises(InputError, match=r"row 0: the column file holds a path \(0\.png\), and a data set of the hub"):
        datasets.listing(section("hf", path="owner/set", image="file", test=None), tmp_path)


def test_hf_without_network_raises_one_line_error(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"data.path: nobody/nothing: .*; give a hub id and a network") as caught:
        datasets.listing(section("hf", path="nobody/nothing"), tmp_path)
    assert "\n" not in str(caught.value)


def test_hf_fingerprint_follows_files_or_revision(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.parquet").write_bytes(b"1")
    before = datasets.fingerprint(section("hf", path="set"), tmp_path)
    assert before == datasets.fingerprint(section("hf", path="set", train="train"), tmp_path)
    (tmp_path / "set/train.parquet").write_bytes(b"22")
    assert before != datasets.fingerprint(section("hf", path="set"), tmp_path)
    pinned = [datasets.fingerprint(section("hf", path="a/b", revision=name), tmp_path) for name in ("v1", "v2")]
    assert pinned[0] != pinned[1]


def test_torchvision_mnist_from_its_files(tmp_path: Path) -> None:
    mnist_tree(tmp_path / "sets", train=20, test=10)
    dataset = datasets.listing(section("torchvision", name="MNIST", root="sets", download=False), tmp_path)
    assert dataset.classes[0] == "0 - zero" and len(dataset.classes) == 10
    assert dataset.train.labels_N.tolist() == [*range(10), *range(10)]
    assert dataset.test is not None and len(dataset.test) == 10
    with dataset.train.load(3) as image:
        assert (image.size, image.mode) == ((28, 28), "L")
    again = section("torchvision", name="MNIST", root="sets")
    assert dataset.fingerprint == datasets.fingerprint(again, tmp_path)


def test_torchvision_set_without_splits_or_label_list(tmp_path: Path) -> None:
    size = {"size": 12, "image_size": [3, 8, 8], "num_classes": 3}
    dataset = datasets.listing(section("torchvision", name="FakeData", root="sets", options=size), tmp_path)
    assert dataset.test is None and len(dataset.train) == 12
    assert dataset.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "MNISTT"}, r"no set MNISTT; did you mean \w*MNIST\?"),
        ({"name": "MNIST"}, "MNIST: Dataset not found.*put the set's files in"),
        ({"name": "Flowers102", "train": "trian"}, "Flowers102: Unknown value 'trian' for argument split"),
        ({"name": "FakeData", "options": {"sise": 3}}, "FakeData: .*unexpected keyword argument 'sise'"),
    ],
)
def test_torchvision_names_invalid_values(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        datasets.listing(section("torchvision", **{"root": "sets", "download": False, **options}), tmp_path)


def test_torchvision_split_options_follow_the_constructor() -> None:
    import torchvision.datasets as library

    def splits(name: str, **extra: object) -> list[dict[str, Any]]:
        return split_options(getattr(library, name), extra, "train", "test")

    assert splits("CIFAR10") == splits("QMNIST") == [{"train": True}, {"train": False}]
    assert splits("EMNIST", split="letters") == [{"train": True}, {"train": False}]
    assert splits("Food101") == [{"split": "train"}, {"split": "test"}]
    assert splits("EuroSAT") == splits("Caltech101") == [{}]


def test_hf_cells_that_hold_nothing_are_no_label_and_no_group(hub: Any, tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(f"{row}"), "path": None} for row in range(6)]}
    rows |= {"label": [0, 1, -1, 0, 1, 1], "patient": [1.0, float("nan"), float("nan"), 2.0, None, 2.0]}
    features = hub.Features({"image": hub.Image(), "label": hub.Value("int64"), "patient": hub.Value("float64")})
    (tmp_path / "scans").mkdir()
    hub.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "scans/train-00000-of-00001.parquet")
    dataset = datasets.listing(section("hf", path="scans", test=None, group="patient"), tmp_path)
    assert dataset.train.labels_N.tolist() == [0, 1, UNLABELED, 0, 1, 1] and dataset.classes == ("0", "1")
    assert dataset.train.groups == ["1.0", None, None, "2.0", None, "2.0"]
    assert any("1 rows with the label -1 count as unlabeled" in note for note in dataset.notes)


def test_torchvision_set_without_checksums_is_another_with_other_files(tmp_path: Path) -> None:
    for label, index in itertools.product(("a", "b"), range(2)):
        write_picture(tmp_path / "sets" / label / f"{index}.png", f"{label}{index}")
    images = section("torchvision", name="ImageFolder", root="sets", download=False)
    before = datasets.fingerprint(images, tmp_path)
    assert before == datasets.fingerprint(images, tmp_path)
    write_picture(tmp_path / "sets/a/9.png", "a9")
    assert datasets.fingerprint(images, tmp_path) != before


def test_linked_folder_of_a_local_set_counts(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_picture(tmp_path / "elsewhere/0.png", "0")
    (tmp_path / "set/images").symlink_to(tmp_path / "elsewhere")
    before = datasets.fingerprint(section("hf", path="set"), tmp_path)
    os.utime(tmp_path / "elsewhere/0.png", ns=(7, 7))
    (tmp_path / "set/images/again").symlink_to(tmp_path / "set")  # a loop
    (tmp_path / "set/once more").symlink_to(tmp_path / "elsewhere")
    assert datasets.fingerprint(section("hf", path="set"), tmp_path) != before
