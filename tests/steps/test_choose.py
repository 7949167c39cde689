"""`sources: auto`: which models are asked, which are taken, and that a run keeps its choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgedistill import check, session
from edgedistill.errors import InputError
from edgedistill.recipe.file import RecipeError, read_recipe
from edgedistill.recipe.schema import Recipe, Source
from edgedistill.records import SourceWeights
from edgedistill.run import artifacts
from edgedistill.run.directory import Run, run_directory
from edgedistill.similarity import weigh
from edgedistill.sources import catalog, chosen, registry
from edgedistill.sources.catalog import Entry, Listed
from edgedistill.steps import choose
from edgedistill.steps.context import Context
from edgedistill.steps.step import run_steps
from tests.helpers import miniature
from tests.helpers.miniature import Project

NET = "test_resnet"
ONE_STEP = ("distill.steps=1", "search.trials=1", "search.steps=1", "distill.method=auto")


def entry(name: str, *, domain: str = "a", px: int = 32, seed: int = 0, **facts: Any) -> Entry:
    """A tiny net with random weights, in the place of a published one."""
    options = {"model": NET, "pretrained": False, "seed": seed}
    return Entry(
        **{"name": name, "domain": domain, "kind": "timm", "params_m": 0.5, "gmacs": 0.1, "options": options, **facts}
    )


def listed(entries: Sequence[Entry], **states: tuple[catalog.State, str]) -> list[Listed]:
    models = []
    for one_entry in entries:
        state, licence = states.get(one_entry.name, ("cached", "mit"))
        models.append(Listed(entry=one_entry, classes=10, input_px=32, licence=licence, state=state))
    return models


def offer(monkeypatch: pytest.MonkeyPatch, models: Sequence[Listed]) -> None:
    """Make the catalog list these models."""
    monkeypatch.setattr(catalog, "listed", lambda entries: list(models))


def auto(**options: Any) -> Source:
    return Source.model_validate({"name": "auto", "kind": "auto", **options})


def recipe_of(project: Project, *sets: str) -> Recipe:
    return check.load(read_recipe(project.recipe, ["sources=auto", *ONE_STEP, *sets]))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return miniature.write(tmp_path / "project")


def test_auto_is_one_source_and_enters_no_recipe_that_leaves_it_out(project: Project) -> None:
    recipe = recipe_of(project)
    assert [(section.name, section.kind) for section in recipe.sources] == [("auto", "auto")]
    assert recipe.distill.method.name == "adapted"
    assert check.load(read_recipe(project.recipe, ["sources=[]", *ONE_STEP])).distill.method.name == "transfer"
    with pytest.raises(RecipeError, match="kind auto is there twice"):
        recipe_of(project, "sources=[{name: a, kind: auto}, {name: b, kind: auto}]")
    with pytest.raises(InputError, match="is chosen when the run begins"):
        registry.load(auto(), project.root)


STATES: dict[str, tuple[catalog.State, str]] = {
    "free": ("cached", "apache-2.0"),
    "closed": ("cached", "cc-by-nc-4.0"),
    "distant": ("reachable", "mit"),
    "lost": ("out of reach", "mit"),
    "package": ("installed", ""),
}
OFFERED = [*(entry(name) for name in STATES), entry("large", gmacs=50.0), entry("heavy", params_m=1e6)]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["free", "package"]),
        ({"download": True}, ["free", "distant", "package"]),
        ({"any_license": True}, ["free", "closed", "package"]),
        ({"gmacs": 60}, ["free", "package", "large"]),
    ],
)
def test_only_what_may_and_fits_is_asked(
    monkeypatch: pytest.MonkeyPatch, project: Project, options: dict[str, Any], names: list[str]
) -> None:
    offer(monkeypatch, listed(OFFERED, **STATES))
    candidates = chosen.candidates(recipe_of(project), auto(**options))
    assert [model.entry.name for model in candidates.models] == names
    assert {"lost", "heavy"} <= candidates.refused.keys() and set(names).isdisjoint(candidates.refused)
    assert candidates.megabytes == (2.0 if "download" in options else 0.0)
    assert ("2 MB" in candidates.told()) and ("with `download: true`" in candidates.told()) is not options.get(
        "download", False
    )


def test_most_similar_models_are_taken_on_labels_that_train(
    monkeypatch: pytest.MonkeyPatch, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """The models come in the order of their scores, and a run that goes on does not choose again."""
    names = [f"net{index}" for index in range(5)]
    offer(monkeypatch, listed([entry(name, seed=index) for index, name in enumerate(names)]))
    recipe = recipe_of(project, "sources=[{name: auto, kind: auto, most: 2, images: 20}]")
    run = run_directory(recipe, project.runs)
    context = Context(recipe=recipe, base=project.root, run=run)
    with run.lock():
        run_steps(context, (choose.STEP,))
    content = artifacts.CHOSEN.read(run)
    scores = {model["name"]: model["score"] for model in content["catalog"]}
    best = sorted(names, key=lambda name: -scores[name])[:2]
    assert [section["name"] for section in content["sources"]] == best
    assert all(model["taken"] is (model["name"] in best) for model in content["catalog"])
    assert "2 come before it" in str(content["catalog"])
    chosen_recipe = chosen.with_chosen(recipe, run)
    assert [section.name for section in chosen_recipe.sources] == best
    with run.lock():  # what is there later changes nothing
        offer(monkeypatch, [])
        run_steps(context, (choose.STEP,))
    assert artifacts.CHOSEN.read(run) == content and "choose     up to date" in capsys.readouterr().err


def test_with_folds_no_label_chooses(monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    domains = ["a", "a", "a", "b", "c"]
    entries = [entry(f"net{index}", domain=domain) for index, domain in enumerate(domains)]
    offer(monkeypatch, listed(entries))
    monkeypatch.setattr(registry, "load", lambda *_: pytest.fail("a model was asked"))
    recipe = recipe_of(
        project, "sources=[{name: auto, kind: auto, most: 3}]", "data.root=pictures/train", "data.labels_per_class=null"
    )
    context = Context(recipe=recipe, base=project.root, run=run_directory(recipe, project.runs))
    choose.work(context)
    assert [section["name"] for section in artifacts.CHOSEN.read(context.run)["sources"]] == ["net0", "net3", "net4"]


def test_models_are_scored_where_classes_outnumber_the_pairs_that_are_asked(
    monkeypatch: pytest.MonkeyPatch, project: Project
) -> None:
    """Of 24 classes no two have a pair among 20 pictures that are taken one of each."""
    for index in range(24):
        folder = project.root / f"many/kind{index:02}"
        folder.mkdir(parents=True)
        for number in range(6):
            miniature.picture(index % 2 == 0, 50 * index + number).save(folder / f"{number}.png")
    names = [f"net{index}" for index in range(5)]
    offer(monkeypatch, listed([entry(name, seed=index) for index, name in enumerate(names)]))
    options = ("data.root=many", "data.labels_per_class=null", "data.protocol=holdout", "data.unlabeled=null")
    recipe = recipe_of(
        project, "sources=[{name: auto, kind: auto, most: 2, images: 20}]", "weigh.metric=probe", *options
    )
    context = Context(recipe=recipe, base=project.root, run=run_directory(recipe, project.runs))
    choose.work(context)
    scores = {model["name"]: model.get("score") for model in artifacts.CHOSEN.read(context.run)["catalog"]}
    assert None not in scores.values() and set(scores) == set(names)


def test_choice_without_a_score_is_said(
    monkeypatch: pytest.MonkeyPatch, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    domains = ["a", "a", "b"]
    offer(monkeypatch, listed([entry(f"net{index}", domain=domain) for index, domain in enumerate(domains)]))
    nothing = SourceWeights(metric="probe", probe_images=0, power=12.0, sources=())
    monkeypatch.setattr(weigh, "weigh_sources", lambda *_, **__: nothing)
    recipe = recipe_of(project, "sources=[{name: auto, kind: auto, most: 2}]")
    context = Context(recipe=recipe, base=project.root, run=run_directory(recipe, project.runs))
    choose.work(context)
    assert [section["name"] for section in artifacts.CHOSEN.read(context.run)["sources"]] == ["net0", "net2"]
    assert "no model can be scored, as no two classes have two labels" in capsys.readouterr().err


def test_run_goes_on_with_its_choice_to_the_byte(
    monkeypatch: pytest.MonkeyPatch, project: Project, tmp_path: Path
) -> None:
    offer(monkeypatch, listed([entry("first"), entry("second", seed=1)]))
    document = read_recipe(project.recipe, ["sources=auto", *ONE_STEP])
    context = session.train(document, check.load(document), project.runs)
    assert [section.name for section in context.recipe.sources] == ["first", "second"]
    assert list(context.weights.alphas) == ["first", "second"]
    recorded, _ = context.run.recipe()
    assert recorded.sources == context.recipe.sources
    before = {path: path.read_bytes() for path in context.run.path.rglob("*.safetensors")}
    (context.run / "manifest.json").write_text((context.run / "manifest.json").read_text())
    offer(monkeypatch, [])
    context.run.drop_step("distill")
    again = session.train(document, check.load(document), project.runs)
    assert again.recipe.sources == context.recipe.sources and before
    assert {path: path.read_bytes() for path in before} == before


def test_without_any_source_the_labels_teach(monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    offer(monkeypatch, listed([entry("lost")], lost=("out of reach", "mit")))
    recipe = recipe_of(project)
    context = Context(recipe=recipe, base=project.root, run=run_directory(recipe, project.runs))
    choose.work(context)
    alone = chosen.with_chosen(recipe, context.run)
    assert alone.sources == () and alone.distill.method.name == "transfer"
    needy = recipe_of(project, "distill.method=nearest")
    with pytest.raises(InputError, match="nearest needs sources"):
        chosen.with_chosen(needy, context.run)


def test_broken_choice_is_named(project: Project) -> None:
    run = Run(path=project.root)
    artifacts.CHOSEN.write(run, {"sources": [{"kind": 3}]})
    with pytest.raises(InputError, match="are not those of a recipe"):
        chosen.with_chosen(recipe_of(project), run)


def test_check_tells_what_auto_would_take(
    monkeypatch: pytest.MonkeyPatch, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, listed([entry("first"), entry("distant")], distant=("reachable", "mit")))
    assert check.missing(recipe_of(project), project.root) == []
    assert "auto: 1 of 2 in the catalog are here and fit; 1 more take 2 MB" in capsys.readouterr().err
