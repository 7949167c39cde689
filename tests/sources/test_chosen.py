"""A recipe whose `sources: auto` stands for nothing is otherwise the recipe that was read."""

from __future__ import annotations

from pathlib import Path

from edgedistill.recipe.schema import Recipe
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.sources import chosen


def test_recipe_without_chosen_sources_keeps_its_storage(tmp_path: Path) -> None:
    run = Run(path=tmp_path)
    artifacts.CHOSEN.write(run, {"sources": []})
    raw = {"data": {"kind": "digits"}, "distill": {"lr": 0.01}}
    raw["search"] = {"trials": 3, "storage": "postgresql://user@host/students", "heartbeat_s": 5}
    recipe = Recipe.model_validate({**raw, "sources": "auto"})
    assert recipe.distill.method.name == "adapted"
    alone = chosen.with_chosen(recipe, run)
    assert (alone.search.storage, alone.search.heartbeat_s) == ("postgresql://user@host/students", 5)
    # "transfer" is what `method: auto` stands for without sources
    assert alone == Recipe.model_validate({**raw, "sources": []})
