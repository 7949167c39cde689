"""The kinds of input by name; a module is imported when its kind is run."""

from __future__ import annotations

import importlib

from tests.fuzz.kind import Kind

MODULES = {
    "recipe": "recipes",
    "devices": "inventories",
    "job": "jobs",
    "array": "arrays",
    "csv": "tables",
    "parquet": "parquet",
    "tar": "shards",
    "image": "pictures",
    "onnx": "onnx_graphs",
    "own-model": "own_models",
    "checkpoint": "checkpoints",
    "bundle": "bundles",
    "kept": "kept",
    "misbehaving": "misbehaving",  # for the tests of the fuzzers themselves
}
NAMES = tuple(MODULES)
FUZZED = tuple(name for name in NAMES if name != "misbehaving")


def load(name: str) -> Kind:
    """The kind called `name`."""
    kind = importlib.import_module(f"tests.fuzz.{MODULES[name]}").KIND
    assert isinstance(kind, Kind) and kind.name == name
    return kind
