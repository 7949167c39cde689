"""A committed line's configuration stays what it is: new keys do not enter it, and a raised version does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest

from benchmarks.suite import protocol
from edgedistill.distill.methods import METHODS
from edgedistill.distill.teachers import TEACHERS
from edgedistill.recipe.options import LATER
from edgedistill.similarity.metrics import METRICS

CONFIGS: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).with_name("suite_configs_0_1.json")).read_text(encoding="utf-8")
)
HELP = (
    "a committed line of the suite lost its configuration: mark what was added with LATER; raise the version of a "
    "method, teacher or metric that computes something else (CONTRIBUTING.md, Recipe keys and versions)"
)


@pytest.mark.parametrize("name", CONFIGS)
def test_committed_profile_keeps_its_configurations(name: str) -> None:
    profile = protocol.load(name)
    # no version was raised when these were written
    assert {cell: profile.config(cell) for cell in CONFIGS[name]} == CONFIGS[name], HELP


def test_every_committed_line_has_a_configuration_of_its_profile() -> None:
    results = Path(protocol.__file__).parents[1] / "results"
    lines = [json.loads(line) for path in results.glob("suite*.json*") for line in path.read_text().splitlines()]
    configs = {name: set(cells.values()) for name, cells in CONFIGS.items()}
    profiles = [line for line in lines if line.get("profile") in configs and line.get("kind") == "run"]
    current = [line for line in profiles if line["config"] in configs[line["profile"]]]
    assert len(current) > 500


def test_raised_version_changes_the_configurations_of_those_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = protocol.load("cpu")
    before = {cell: profile.config(cell) for cell in CONFIGS["cpu"]}
    monkeypatch.setitem(METHODS, "weighted", replace(METHODS["weighted"], version=2))
    changed = {cell for cell in before if profile.config(cell) != before[cell]}
    assert changed == {"weighted", "weighted-long"}
    monkeypatch.setitem(TEACHERS, "selftrained", replace(TEACHERS["selftrained"], version=2))
    assert profile.config("draw") != before["draw"] and profile.config("transfer") == before["transfer"]
    monkeypatch.setitem(METRICS, "probe", replace(METRICS["probe"], version=2))
    assert profile.config("nearest") != before["nearest"] and profile.config("transfer") == before["transfer"]


def test_sources_enter_the_configuration_of_the_methods_that_use_them() -> None:
    deploy = protocol.load("deploy")
    assert not deploy.bank_in_every_config
    with_sources = {cell for cell in deploy.methods if deploy.uses_sources(cell)}
    assert "weighted-ridge" in with_sources and "fixmatch-ridge" not in with_sources
    for changes in (
        {"ready": {}},
        {"finetuned": {"cifar100": 1}},
        {"packs": {}},
        {"weigh": deploy.weigh.model_copy(update={"power": 1.0})},
    ):
        changed = deploy.model_copy(update=changes)
        different = {cell for cell in deploy.methods if changed.config(cell) != deploy.config(cell)}
        assert different == with_sources, changes
        assert changed.config("draw") != deploy.config("draw")
    larger = deploy.model_copy(update={"store_px": 320})
    assert all(larger.config(cell) != deploy.config(cell) for cell in deploy.methods)
    cpu = protocol.load("cpu")  # its lines are older than the rule
    assert cpu.model_copy(update={"ready": {}}).config("transfer") != cpu.config("transfer")


def test_later_option_of_a_method_changes_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    transfer_method = METHODS["transfer"]

    def transfer(batch: Any, alphas: Any, *, smoothing: Annotated[float, LATER] = 0.0) -> Any:
        return transfer_method.loss(batch, alphas)

    profile = protocol.load("cpu")
    before = profile.config("transfer")
    monkeypatch.setitem(METHODS, "transfer", replace(transfer_method, loss=transfer))
    assert profile.config("transfer") == before


def test_row_says_what_is_newer_than_the_lines() -> None:
    profile = protocol.load("cpu")
    newer: list[dict[str, Any]] = [{"head_start": "ridge"}, {"level": 0.05}, {"sources": "best"}, {"sources": 1}]
    newer += [{"weigh": {"metric": "leep"}}, {"weigh": {"alike": "once"}}, {"heads_rate": 2.0}]
    row = {"method": {"name": "weighted", "lam": 0.2}}
    rows = {"weighted": row, **{f"weighted-{n}": {**row, **keys} for n, keys in enumerate(newer)}}
    rows["weighted-more"] = {**row, "labels": 2}
    rows["weighted-rising"] = {"method": {**row["method"], "lam_last": 0.8}}
    changed = profile.model_copy(update={"methods": rows})
    assert changed.config("weighted") == profile.config("weighted")
    assert len({changed.config(cell) for cell in rows}) == len(rows)
    assert changed.settings("weighted", "", 0).head_start == "random"
    assert (changed.level("weighted"), changed.level("weighted-1")) == (1.0, 0.05)
    assert (changed.weighing("weighted").metric.name, changed.weighing("weighted-4").metric.name) == ("probe", "leep")
