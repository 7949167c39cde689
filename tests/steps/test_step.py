"""A step runs when it must, and then the manifest knows what it left."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from edgedistill.recipe.schema import Recipe
from edgedistill.run.directory import Run
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step, run_steps
from tests.helpers.miniature import RECIPE


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(recipe=Recipe.model_validate(yaml.safe_load(RECIPE)), base=tmp_path, run=Run(path=tmp_path / "run"))


def changed(context: Context, section: str, **values: object) -> Context:
    whole = context.recipe.model_dump(mode="json")
    whole[section] |= values
    return Context(recipe=Recipe.model_validate(whole), base=context.base, run=context.run)


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


def ran(context: Context, steps: tuple[Step, ...], capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    run_steps(context, steps)
    return [line.split()[0] for line in capsys.readouterr().err.splitlines() if " done in " in line]


def test_steps_run_once_and_follow_what_they_read(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(context, STEPS, capsys) == ["first", "second"]
    assert ran(context, STEPS, capsys) == []
    assert ran(changed(context, "bench", samples=3), STEPS, capsys) == []
    assert ran(changed(context, "export", opset=17), STEPS, capsys) == ["second"]
    assert ran(context, STEPS, capsys) == ["second"]
    assert ran(changed(context, "distill", steps=5), STEPS, capsys) == ["first", "second"]
    assert (context.run / "b.txt").read_text() == "5!"
    # another optimiser, the same bytes left: what comes after need not run
    assert ran(changed(context, "distill", steps=5, lr=0.5), STEPS, capsys) == ["first"]


def test_a_new_version_or_a_changed_outside_input_runs_it_again(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(context, STEPS[:1], capsys) == ["first"]
    assert ran(context, (dataclasses.replace(STEPS[0], version=2),), capsys) == ["first"]
    outside = [dataclasses.replace(STEPS[0], inputs=lambda context, mark=mark: {"data": mark}) for mark in "ab"]
    assert [ran(context, (step,), capsys) for step in outside] == [["first"], ["first"]]
    assert ran(context, (outside[1],), capsys) == []


def test_the_manifest_holds_the_outputs_and_no_hidden_files(context: Context) -> None:
    run_steps(context, STEPS)
    assert list(context.run.hashes("first")) == ["first/a.txt"] and list(context.run.hashes("second")) == ["b.txt"]


def test_a_step_that_fails_is_not_entered_and_goes_on_from_its_scratch(context: Context) -> None:
    seen: list[bool] = []

    def halfway(context: Context) -> None:
        seen.append((context.run / "last.pt").exists())
        context.run.path.mkdir(exist_ok=True)
        (context.run / "last.pt").write_text("half")
        if len(seen) != 2:
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
        with pytest.raises(RuntimeError) if not seen else pytest.MonkeyPatch.context():
            run_steps(context, (step,))
    assert seen == [False, True] and context.run.hashes("train")
    with pytest.raises(RuntimeError):
        run_steps(changed(context, "distill", steps=3), (step,))
    assert seen == [False, True, False]  # another key starts from nothing
    assert context.run.hashes("train") == {} and not (context.run / "done.txt").exists()
