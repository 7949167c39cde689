"""A step runs when its inputs changed, and the manifest lists its outputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from edgedistill.pipeline import TRAIN
from edgedistill.recipe.schema import Recipe
from edgedistill.run.directory import Run
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step, run_steps
from tests.helpers.miniature import RECIPE
from tests.helpers.trees import bare_tree, pictures


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(recipe=Recipe.model_validate(yaml.safe_load(RECIPE)), base=tmp_path, run=Run(path=tmp_path / "run"))


def changed(context: Context, section: str, **values: object) -> Context:
    recipe = context.recipe.model_dump(mode="json")
    recipe[section] |= values
    return Context(recipe=Recipe.model_validate(recipe), base=context.base, run=context.run)


def first(context: Context) -> None:
    (context.run / "first").mkdir(parents=True, exist_ok=True)
    (context.run / "first/a.txt").write_text(str(context.recipe.distill.steps))
    (context.run / "first/.hidden.txt").write_text("scratch of a library")


def second(context: Context) -> None:
    (context.run / "b.txt").write_text((context.run / "first/a.txt").read_text() + "!")


STEPS = (
    Step(name="first", version=1, sections=("distill",), after=(), outputs=("first/*",), work=first),
    Step(name="second", version=1, sections=("export",), after=("first",), outputs=("b.txt",), work=second),
)


def executed_steps(context: Context, steps: tuple[Step, ...], capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    run_steps(context, steps)
    return [line.split()[0] for line in capsys.readouterr().err.splitlines() if " done in " in line]


def test_steps_run_once_and_again_after_input_changes(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    assert executed_steps(context, STEPS, capsys) == ["first", "second"]
    assert executed_steps(context, STEPS, capsys) == []
    assert executed_steps(changed(context, "bench", samples=3), STEPS, capsys) == []
    assert executed_steps(changed(context, "export", opset=17), STEPS, capsys) == ["second"]
    assert executed_steps(context, STEPS, capsys) == ["second"]
    assert executed_steps(changed(context, "distill", steps=5), STEPS, capsys) == ["first", "second"]
    assert (context.run / "b.txt").read_text() == "5!"
    # another learning rate, the same output bytes: later steps do not run
    assert executed_steps(changed(context, "distill", steps=5, lr=0.5), STEPS, capsys) == ["first"]


def test_new_version_or_outside_input_reruns_step(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    assert executed_steps(context, STEPS[:1], capsys) == ["first"]
    assert executed_steps(context, (dataclasses.replace(STEPS[0], version=2),), capsys) == ["first"]
    outside = [dataclasses.replace(STEPS[0], inputs=lambda context, mark=mark: {"data": mark}) for mark in "ab"]
    assert [executed_steps(context, (step,), capsys) for step in outside] == [["first"], ["first"]]
    assert executed_steps(context, (outside[1],), capsys) == []


def test_manifest_lists_outputs_without_hidden_files(context: Context) -> None:
    run_steps(context, STEPS)
    assert list(context.run.hashes("first")) == ["first/a.txt"] and list(context.run.hashes("second")) == ["b.txt"]


def test_failed_step_is_not_recorded_and_resumes_from_scratch_files(context: Context) -> None:
    scratch_seen: list[bool] = []

    def halfway(context: Context) -> None:
        scratch_seen.append((context.run / "last.pt").exists())
        context.run.path.mkdir(exist_ok=True)
        (context.run / "last.pt").write_text("half")
        if len(scratch_seen) != 2:
            raise RuntimeError("killed")
        (context.run / "done.txt").write_text("done")

    step = Step(
        name="train",
        version=1,
        sections=("distill",),
        after=(),
        outputs=("done.txt",),
        work=halfway,
        scratch=("last.pt",),
    )
    for _ in range(2):
        with pytest.raises(RuntimeError) if not scratch_seen else pytest.MonkeyPatch.context():
            run_steps(context, (step,))
    assert scratch_seen == [False, True] and context.run.hashes("train")
    with pytest.raises(RuntimeError):
        run_steps(changed(context, "distill", steps=3), (step,))
    assert scratch_seen == [False, True, False]  # another key starts without scratch files
    assert context.run.up_to_date("train", step.key(context)) and (context.run / "done.txt").read_text() == "done"
    with pytest.raises(RuntimeError):
        run_steps(changed(context, "distill", steps=3), (step,))
    assert scratch_seen == [False, True, False, True]  # and goes on from its own


def test_steps_of_failed_group_are_as_before_and_not_repeated(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(context: Context) -> None:
        raise RuntimeError("no room")

    group = (STEPS[0], dataclasses.replace(STEPS[1], commits=True))
    run_steps(context, group)
    before, longer = context.run.manifest(), changed(context, "distill", steps=5)
    settled: list[str] = []
    with pytest.raises(RuntimeError):
        run_steps(longer, (group[0], dataclasses.replace(group[1], work=fail)), settle=lambda: settled.append("saved"))
    assert context.run.manifest() == before and settled == []
    assert [(context.run / name).read_text() for name in ("first/a.txt", "b.txt")] == ["30", "30!"]
    assert executed_steps(context, group, capsys) == []
    assert executed_steps(longer, group, capsys) == ["second"]  # the first was finished before
    assert (context.run / "b.txt").read_text() == "5!" and not list((context.run / ".aside").rglob("*.txt"))


def test_group_that_is_complete_stays_when_later_step_fails(context: Context) -> None:
    def fail(context: Context) -> None:
        raise RuntimeError("the device is off")

    group = (STEPS[0], dataclasses.replace(STEPS[1], commits=True))
    run_steps(context, group)
    later = Step(name="later", version=1, after=("second",), outputs=("later.txt",), work=fail)
    settled: list[str] = []
    with pytest.raises(RuntimeError):
        run_steps(changed(context, "distill", steps=5), (*group, later), settle=lambda: settled.append("saved"))
    assert (context.run / "b.txt").read_text() == "5!" and settled == ["saved"]


def test_repeated_step_that_fails_keeps_its_outputs(context: Context) -> None:
    run_steps(context, STEPS)
    before = context.run.manifest()

    def fail(context: Context) -> None:
        (context.run / "b.txt").write_text("half")
        raise RuntimeError("the device is off")

    with pytest.raises(RuntimeError):
        run_steps(context, (STEPS[0], dataclasses.replace(STEPS[1], work=fail)), again=["second"])
    assert (context.run / "b.txt").read_text() == "30!" and context.run.manifest() == before


@pytest.mark.parametrize("name", ["birds", "data", "unlabeled"])
def test_key_of_weigh_follows_a_source_whatever_it_is_called(context: Context, name: str) -> None:
    bare_tree(context.base / "pictures", pictures("ant", "bee"))
    sources = [{"name": name, "kind": "weights", "file": "birds.pth", "model": "resnet10t"}]
    recipe = {**yaml.safe_load(RECIPE), "data": {"kind": "folder", "root": "pictures"}, "sources": sources}
    own = Context(recipe=Recipe.model_validate(recipe), base=context.base, run=context.run)
    keys = set()
    for content in (b"1", b"22"):
        (context.base / "birds.pth").write_bytes(content)
        keys.add(TRAIN[0].key(own))
    assert len(keys) == 2


def test_folder_that_matches_is_no_output(context: Context) -> None:
    (context.run / "first/__pycache__").mkdir(parents=True)
    run_steps(context, STEPS)
    assert list(context.run.hashes("first")) == ["first/a.txt"]
