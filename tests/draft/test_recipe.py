"""The drafted recipe: it is valid, heeds what was wished, and leads to a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgedistill import check
from edgedistill.distill import schedule
from edgedistill.draft import recipe as drafts
from edgedistill.draft import settings
from edgedistill.draft.settings import Wishes
from edgedistill.errors import InputError
from edgedistill.recipe.file import parse_recipe, read_recipe
from edgedistill.recipe.schema import Recipe
from edgedistill.students import pretrained
from tests.draft.test_look import pictures
from tests.helpers import miniature

QUICK = ("--set", "search.trials=1", "--set", "bench.seconds=0.05", "--set", "bench.samples=4")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures in class folders, on a machine with nothing installed, nothing cached and no hub."""

    def absent(package: str) -> Path:
        raise InputError(f"the package {package} is not installed")

    monkeypatch.setattr(pretrained, "package_file", absent)
    monkeypatch.setattr("edgedistill.students.families.package_file", absent)
    monkeypatch.setattr(pretrained, "cached_repositories", set)
    monkeypatch.setattr(pretrained, "hub_answers", lambda: False)
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos", each=12)
    return tmp_path / "photos"


def drafted(photos: Path, **wishes: Any) -> Recipe:
    text = drafts.first_recipe(str(photos), Wishes(**wishes), base=photos.parent).text
    return check.load(parse_recipe(text, photos.parent / "recipe.yaml"))


def test_every_choice_has_its_reason(photos: Path) -> None:
    draft = drafts.first_recipe(str(photos), Wishes(), base=photos.parent)
    assert yaml.safe_load(draft.text)["data"] == {
        "kind": "folder",
        "root": "photos",
        "protocol": "auto",
        "store_px": 64,
    }
    for reason in ("in folds, each by", "pictures have 40 px", "no weights are installed", "--minutes changes it"):
        assert reason in draft.text
    assert max(map(len, draft.text.splitlines())) <= 120 and draft.text.endswith("\n")
    assert [line.split()[0] for line in draft.lines] == ["data", "student", "sources", "cost"]
    assert "24 pictures of 2 classes, 12 labels each; 40 px" in draft.lines[0] and draft.megabytes == 0


def test_recipe_names_its_schema_for_editors(photos: Path) -> None:
    first = drafts.first_recipe(str(photos), Wishes()).text.splitlines()[0]
    address = first.removeprefix("# yaml-language-server: $schema=file://")
    assert json.loads(Path(address).read_text(encoding="utf-8"))["required"] == ["data"]


def test_drafted_recipe_is_complete_and_the_same_each_time(photos: Path) -> None:
    recipe = drafted(photos)
    assert recipe == drafted(photos)
    assert recipe.name == "photos" and recipe.sources[0].kind == "auto" and recipe.quantize.enabled
    assert recipe.distill.batch_unlabeled == 0 and recipe.distill.augment.hflip
    assert set(recipe.student.families) == {"micro"}


@pytest.mark.parametrize(
    ("wishes", "key", "expected"),
    [
        ({"latency_ms": 5.0}, "student.budget.latency_ms.at_most", 5.0),
        ({"labels_per_class": 5}, "data.labels_per_class", 5),
        ({"labels_per_class": 5}, "distill.batch_unlabeled", 32),
        ({"sources": ("none",)}, "distill.method.name", "transfer"),
        ({"sources": ("none",), "labels_per_class": 6}, "distill.batch_labeled", 32),
        (
            {"sources": ("dinov2", "inat21")},
            "sources.1.options.model",
            "hf-hub:timm/convnext_large_mlp.laion2b_ft_augreg_inat21",
        ),
        ({"download": True, "any_license": True}, "sources.0.options.download", True),
        ({"download": True}, "student.families.mobilenetv4.weights", "hub"),
        ({"device": "local"}, "bench.devices", ("local",)),
        ({"device": "local", "latency_ms": 2.0}, "student.budget.latency_ms.backend", "onnxruntime-cpu"),
    ],
)
def test_wishes_are_heeded(photos: Path, wishes: dict[str, Any], key: str, expected: object) -> None:
    place: Any = drafted(photos, **wishes)
    for part in key.split("."):
        if isinstance(place, dict | tuple):
            place = place[int(part) if part.isdecimal() else part]
        else:
            place = getattr(place, part) if hasattr(place, part) else place.options[part]
    assert place == expected


def devices(backends: str) -> None:
    Path("deploy").mkdir(exist_ok=True)
    entry = f"board: {{transport: ssh, host: board, backends: [{backends}]}}\n"
    Path("deploy/devices.yaml").write_text(entry, encoding="utf-8")


def test_latency_is_bound_on_a_backend_that_times_candidates(photos: Path) -> None:
    """The graph for ncnn is made of the finished student."""
    devices("ncnn, ncnn-half, openvino")
    bound = drafted(photos, device="board", latency_ms=2.0).student.budget.latency_ms
    assert bound is not None and (bound.device, bound.backend, bound.precision) == ("board", "openvino", "int8")
    devices("ncnn")
    assert drafted(photos, device="board").bench.devices == ("board",)
    with pytest.raises(InputError, match="--latency-ms: board has ncnn alone, whose graph is made of the finished"):
        drafted(photos, device="board", latency_ms=2.0)


def test_more_minutes_train_longer(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "CORE", 40e9)
    short, long = drafted(photos, minutes=5.0), drafted(photos, minutes=20.0)
    assert settings.LEAST_STEPS <= short.distill.steps < long.distill.steps
    assert short.search.steps < long.search.steps


@pytest.mark.parametrize(
    ("wishes", "problem"),
    [
        ({"device": "locla"}, "did you mean local"),
        ({"sources": ("dinov22",)}, "did you mean dinov2"),
        ({"labels_per_class": 13}, "class class0 has 12 labels, fewer than 13"),
    ],
)
def test_wish_that_cannot_be_met_is_refused(photos: Path, wishes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        drafted(photos, **wishes)


def test_uneven_classes_count_the_same_and_characters_are_not_mirrored(photos: Path) -> None:
    for path in sorted((photos / "class1").iterdir())[3:]:
        path.unlink()
    assert drafted(photos).data.score == "balanced"
    (photos / "class0").rename(photos / "7")
    (photos / "class1").rename(photos / "8")
    assert drafted(photos).distill.augment.hflip is False


def test_init_writes_a_recipe_that_check_accepts(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    completed = miniature.call("init", "photos", "-o", "task/first.yaml")
    assert completed.code == 0 and len(completed.out.splitlines()) == 5, completed
    text = Path("task/first.yaml").read_text(encoding="utf-8")
    assert "root: " + str(photos) in text  # it is not below task/
    assert "\n#   edgedistill run task/first.yaml\n" in text
    assert miniature.call("init", "photos").code == 0
    assert "\n#   edgedistill run recipe.yaml\n" in Path("recipe.yaml").read_text(encoding="utf-8")
    assert read_recipe(Path("recipe.yaml")).raw["data"]["root"] == "photos"
    completed = miniature.call("init", "photos")
    assert completed.code == 2 and "recipe.yaml: is there already" in completed.err
    assert miniature.call("check", "recipe.yaml").code == 0


def test_run_of_a_folder_drafts_and_runs_its_recipe(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "LEAST_STEPS", 4)
    monkeypatch.setattr(schedule, "CORE", 1.0)
    command = ("run", "photos", "--labels-per-class", "6", *QUICK)
    completed = miniature.call(*command)
    assert completed.code == 0, completed.err
    (run,) = Path("runs").glob("photos-*")
    first, second, third, fourth, fifth, *_ = completed.err.splitlines()
    assert first.startswith("data ") and fourth.startswith("cost ") and str(run / "recipe.yaml") in fifth
    assert second.startswith("student ") and third.startswith("sources ")
    choice = json.loads((run / "sources.json").read_text(encoding="utf-8"))
    assert choice["sources"] == [] and len(choice["catalog"]) >= 20
    again = miniature.call(*command)
    assert again.code == 0 and "distill    up to date" in again.err
    pictures(photos.parent / "more", each=13)
    (photos.parent / "more/class0/12.png").rename(photos / "class0/12.png")
    again = miniature.call(*command)
    assert again.code == 0, "one picture more is another draft, in the same run: nobody has edited it"
    text = (run / "recipe.yaml").read_text(encoding="utf-8")
    (run / "recipe.yaml").write_text(text.replace("jitter: 0.2", "jitter: 0.3"), encoding="utf-8")
    edited = miniature.call(*command)
    assert edited.code == 2 and f"run it: `edgedistill run {run / 'recipe.yaml'}`" in edited.err


def test_wishes_beside_a_recipe_are_refused(photos: Path) -> None:
    assert miniature.call("init", "photos").code == 0
    completed = miniature.call("run", "recipe.yaml", "--minutes", "5")
    assert completed.code == 2 and "recipe.yaml: is a recipe, and the options are for data" in completed.err


def test_recipe_of_data_alone_is_a_recipe(photos: Path) -> None:
    document = parse_recipe("data: {kind: folder, root: photos}\n", photos.parent / "my task.yaml")
    recipe = check.load(document)
    assert recipe.name == "my-task" and recipe.student.families == {"efficientnet_lite": {}}
    assert recipe.sources == () and recipe.distill.method.name == "transfer"
