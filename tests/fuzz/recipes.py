"""Recipes: read, validated, and checked against what they name, as `edgedistill check` does it."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, get_args

import yaml
from PIL import Image
from pydantic import BaseModel

from edgedistill import check
from edgedistill.data.datasets import DATASETS
from edgedistill.distill.methods import METHODS
from edgedistill.errors import InputError
from edgedistill.recipe.file import RecipeError, read_recipe
from edgedistill.recipe.schema import Recipe
from edgedistill.similarity.metrics import METRICS
from tests.fuzz import yaml_inputs
from tests.fuzz.kind import Kind
from tests.fuzz.mutations import NUMBERS, leaf
from tests.helpers import tars
from tests.helpers.miniature import RECIPE

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"kind": "folder", "root": "pictures"},
    "student": {"families": {"micro": {"width": 4, "input_px": 16}}},
}
TREES: list[dict[str, Any]] = [
    SMALL,
    {**SMALL, "data": {"kind": "csv", "file": "labels.csv", "delimiter": ",", "image": "path", "label": "label"}},
    {**SMALL, "sources": [{"name": "a", "kind": "onnx", "file": "none.onnx", "input_px": 8, "mean": [0, 0, 0]}]},
    {**SMALL, "sources": [{"name": "a", "kind": "weights", "file": "w.safetensors", "model": "resnet10t"}]},
    {**SMALL, "unlabeled": {"kind": "wds", "urls": "shards/{00..01}.tar", "mixed": 8}},
    {**SMALL, "bench": {"inventory": "devices.yaml", "devices": ["local"], "backends": ["onnxruntime-cpu"]}},
    {**SMALL, "student": {"families": {"micro": {"width": [4, 8]}}, "budget": {"macs_m": 10.0, "latency_ms": 5}}},
    yaml.safe_load(RECIPE),
]
WORDS = (*DATASETS, *METHODS, *METRICS, "weighted", "auto", "paper_style", "local", "name", "options", "kind", "path")


def prepare(folder: Path) -> None:
    """Eight pictures in two folders and in a table, a shard, and an inventory."""
    rows = ["path,label"]
    for index in range(16):
        path = folder / f"pictures/{'ab'[index % 2]}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (index, 10 * index, 7)).save(path)
        rows.append(f"pictures/{'ab'[index % 2]}/{index}.png,{'ab'[index % 2]}")
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    (folder / "shards").mkdir()
    for name in ("00", "01"):
        tars.write(folder / f"shards/{name}.tar", {"a.png": path.read_bytes()})
    (folder / "devices.yaml").write_text("nano: {transport: ssh, host: nano}\n", encoding="utf-8")


def call(path: Path) -> None:
    """Read and validate; then look for what a valid recipe names, if nothing of it is on the network."""
    document = read_recipe(path)
    try:
        recipe = check.load(document)
    except RecipeError as error:
        strange = [line for line in str(error).split("\n") if not line.startswith(f"{path}:")]
        assert not strange, strange
        raise
    if is_local(recipe):
        problems = check.missing(recipe, document.base)
        if problems:
            raise InputError("\n".join(problems))


def is_local(recipe: Recipe) -> bool:
    """Whether all that a recipe names is here: looking for the rest is an order to use the network."""
    urls = recipe.unlabeled.urls if recipe.unlabeled else ()
    return (
        recipe.data.kind in ("folder", "csv", "cub", "digits")
        and all(source.kind in ("onnx", "weights") for source in recipe.sources)
        and recipe.search.storage is None
        and set(recipe.student.families) <= {"micro"}
        and not any(":" in url for url in ([urls] if isinstance(urls, str) else urls))
    )


def fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key of the schema that is not in a list."""
    for name, field in model.model_fields.items():
        yield (*path, name)
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind, (*path, name))


FIELDS = [*fields(Recipe), *(("student", "families", "micro", name) for name in ("width", "depth", "input_px"))]


def make(random: Random) -> bytes:
    """A recipe made from one of TREES, or a small one with one to three further keys."""
    if random.random() < 0.5:
        return yaml_inputs.made(random, TREES, WORDS)
    tree = copy.deepcopy(SMALL)
    for _ in range(random.choice((1, 1, 2, 3))):
        *path, name = random.choice(FIELDS)
        section: Any = tree
        for key in path:
            section = section.setdefault(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            simple = (1, 2, 3, 8, 16, 64, 0.25, 0.5, 0.75, True, False, [1, 2], "local", "minmax", "auto")
            section[name] = random.choice(
                (random.choice(simple), random.choice(simple), random.choice(NUMBERS), leaf(random))
            )
    return yaml.safe_dump(tree).encode("utf-8", "surrogatepass")


def cases() -> list[bytes]:
    """Crafted recipes: what a small text makes large."""
    sizes: list[dict[str, Any]] = [
        {"data": {**SMALL["data"], "store_px": 1_000_000}},
        {"data": {**SMALL["data"], "labels_per_class": 2**62}},
        {"unlabeled": {"kind": "wds", "urls": "shards/{0..99999999999}.tar"}},
        {"unlabeled": {"kind": "wds", "urls": "{0..9}" * 12}},
        {"unlabeled": {"kind": "wds", "urls": "{" * 3000 + "}" * 3000}},
        {"sources": [{"name": "a", "kind": "onnx", "file": "none.onnx", "input_px": 2**40}]},
        {"search": {"trials": 2**60, "steps": 2**60}},
    ]
    families = [
        {"width": 10**6, "input_px": 16},
        {"width": 10**12, "input_px": 16},
        {"depth": 10**9, "input_px": 16},
        {"width": 4, "input_px": 10**6},
        {"width": 1000, "depth": 60, "input_px": 8},
        {"width": list(range(1, 201)), "depth": list(range(1, 201)), "input_px": list(range(8, 208))},
    ]
    trees = [{**SMALL, **size} for size in sizes]
    trees += [{**SMALL, "student": {"families": {"micro": family}}} for family in families]
    return [*(json.dumps(tree).encode() for tree in trees), *yaml_inputs.documents("name")]


KIND = Kind(
    name="recipe",
    file="recipe.yaml",
    valid=lambda: yaml.safe_dump(SMALL).encode(),
    make=make,
    call=call,
    inputs=1500,
    prepare=prepare,
    lines=True,
    cases=functools.cache(cases),
)
