"""What makes the steps `search` and `folds` run again, and what workers of one study have to have in common."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgedistill.agent import backends
from edgedistill.recipe.schema import Recipe
from edgedistill.run import artifacts, environment
from edgedistill.run.directory import Run
from edgedistill.run.files import digest
from edgedistill.steps import folds, search, timing
from edgedistill.steps.context import Context


def context_of(folder: Path, backend: str = "any", device: str = "local", **sections: Mapping[str, Any]) -> Context:
    bound = {"at_most": 5, "backend": backend, "device": device}
    raw = {"data": {"kind": "digits"}, "student": {"budget": {"latency_ms": bound}}, **sections}
    run = Run(path=folder / "run")
    artifacts.SOURCES.write(run, {})
    artifacts.DATA.write(run, {"data_hash": "same"})
    return Context(recipe=Recipe.model_validate(raw), base=folder, run=run)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The engines of this machine with their versions, as a test sets them."""
    versions = {"onnxruntime-cpu": "1.31", "openvino": "not here: openvino does not import"}
    monkeypatch.setattr(backends, "available", lambda: versions)
    monkeypatch.setattr(environment, "runtime", lambda name: "" if name == "onnxruntime-cpu" else versions[name])
    return versions


def test_engines_of_this_machine_make_a_search_among_any_run_again(tmp_path: Path, here: dict[str, str]) -> None:
    among_any, by_name = context_of(tmp_path), context_of(tmp_path, backend="openvino")
    keys = []
    for version in ("not here: openvino does not import", "2026.4", "2026.5"):
        here["openvino"] = version
        keys.append((search.deployment(among_any)["timed on"], search.identity(among_any)))
        facts = [by_name.device_facts("local"), timing.bench_settings(by_name)]
        assert search.deployment(by_name)["timed on"] == digest(facts), "a recipe that names its engine has its key"
    assert len(set(keys)) == 3 and len({identity for _, identity in keys}) == 3


def test_engines_that_an_inventory_lists_make_a_search_among_any_run_again(tmp_path: Path) -> None:
    context = context_of(tmp_path, device="pi", bench={"inventory": "devices.yaml"})
    hashes = set()
    for listed in ("onnxruntime-cpu", "openvino", "openvino, onnxruntime-cpu"):
        entry = f"pi: {{transport: ssh, host: pi, backends: [{listed}]}}\n"
        (tmp_path / "devices.yaml").write_text(entry, encoding="utf-8")
        hashes.add(search.deployment(context)["timed on"])
    assert len(hashes) == 3


def test_workers_may_each_have_a_device_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, identities = set(), set()
    for host in ("first", "second"):
        context = context_of(tmp_path, "onnxruntime-cpu", "pi", bench={"inventory": "devices.yaml"})
        entry = f"pi: {{transport: ssh, host: {host}, workdir: bench-{host}, python: /opt/{host}/python}}\n"
        (tmp_path / "devices.yaml").write_text(entry, encoding="utf-8")
        keys.add(search.deployment(context)["timed on"])
        identities.add(search.identity(context))
    assert len(keys) == 2 and len(identities) == 1
    local = context_of(tmp_path, "onnxruntime-cpu")
    monkeypatch.setattr(platform, "node", lambda: "first")
    key, identity = search.deployment(local)["timed on"], search.identity(local)
    monkeypatch.setattr(platform, "node", lambda: "second")
    assert search.deployment(local)["timed on"] != key and search.identity(local) == identity
    monkeypatch.setattr(environment, "processor", lambda: "another one")
    assert search.identity(local) != identity, "a machine with another processor is of another kind"


@pytest.mark.parametrize(
    ("quantize", "again"),
    [({}, True), ({"enabled": False}, False), ({"targets": ["tensorrt"]}, False)],
    ids=["int8", "none", "for GPUs"],
)
def test_folds_run_again_for_other_export_settings_of_their_int8_graph(
    tmp_path: Path, quantize: dict[str, Any], again: bool
) -> None:
    def key(**export: Any) -> str:
        raw = {"data": {"kind": "digits"}, "quantize": quantize, "export": export}
        run = Run(path=tmp_path / "run")
        return folds.STEP.key(Context(recipe=Recipe.model_validate(raw), base=tmp_path, run=run))

    assert (key(opset=18) != key()) == again
    assert key(fp16=False, engines=[]) == key(), "the folds' students have no such graphs"
