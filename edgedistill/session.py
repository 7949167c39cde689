"""How a run begins, goes on and ends: the recipe in place, the directory locked, the pipeline's steps advanced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgedistill import check, crew, environment, recipe, recipe_file, run
from edgedistill.context import Context
from edgedistill.pipeline import TRAIN, nothing, report_step
from edgedistill.progress import say
from edgedistill.records import GateError, InputError
from edgedistill.steps import Step, advance


def train(document: recipe_file.Document, wanted: recipe.Recipe, root: Path) -> Context:
    """weigh, search, distill: from a recipe to a trained student in its run directory under `root`.

    A source that is given as a recipe is trained first, in a run directory beside this one.

    Raises:
        InputError: the recipe asks for what is not there.
        EdgeDistillError: another process works in the run directory, or a step failed.
    """
    run.usable_root(root)
    asked = Context(recipe=wanted, base=document.base, run=run.directory(wanted, root))
    if not asked.run.hashes("search"):
        affordable(asked)
    context = replace(asked, recipe=with_trained_sources(wanted, (document,), root))
    learn(context, document)
    run.point_latest(context.run)
    return context


def learn(context: Context, document: recipe_file.Document) -> None:
    """The steps up to the trained student, under the run directory's lock."""
    crew.shared_evenly(context.recipe)
    if not context.run.up_to_date("weigh", TRAIN[0].key(context)):
        prepare(context)
    with context.run.lock():
        context.run.keep(context.recipe, document)
        if not context.run.up_to_date("distill", TRAIN[-1].key(context)):
            run.write_json(context.run / "env.json", environment.describe())
        advance(context, TRAIN)


def prepare(context: Context) -> None:
    """Load whatever can turn out to be missing or broken, before the run directory is written to."""
    affordable(context)
    say(f"images     {context.splits.train.n} to train on, {context.splits.n_test} to test")


def affordable(context: Context) -> None:
    """Raise InputError where no candidate meets the budget, or the device that bounds it is not in the inventory."""
    from edgedistill.devices import inventory
    from edgedistill.training import student

    bound = context.recipe.student.budget.latency_ms
    if bound:
        inventory.find(inventory.load(context.inventory), bound.device)
    student.feasible(context.candidates, context.recipe.student.budget)


def with_trained_sources(wanted: recipe.Recipe, within: tuple[recipe_file.Document, ...], root: Path) -> recipe.Recipe:
    """The recipe with every `recipe:` source replaced by the run that it was trained in, here and now if need be.

    `within` are the recipe's own document and those that led to it, innermost last: none of them can be its source.
    """

    def trained(section: recipe.Source) -> recipe.Source:
        given = section.options.get("recipe")
        if section.kind != "run" or not given:
            return section
        document = recipe_file.read(within[-1].base / given)
        if any(document.path.samefile(outer.path) for outer in within):
            raise InputError(f"{within[-1].path}: sources.{section.name}: {document.path} would be a source of itself")
        inner = check.load(document)
        say(f"source {section.name}: {document.path.name}")
        whole = with_trained_sources(inner, (*within, document), root)
        context = Context(recipe=whole, base=document.base, run=run.directory(inner, root))
        learn(context, document)
        path = str(context.run.path.resolve())
        return recipe.Source.model_validate({**section.model_dump(exclude={"recipe"}), "path": path})

    return wanted.model_copy(update={"sources": tuple(trained(section) for section in wanted.sources)})


def finish(
    context: Context,
    steps: Callable[[Context], Sequence[Step]],
    remember: bool = False,
    again: Callable[[Context], Sequence[Step]] = nothing,
) -> None:
    """Steps after training, and the report, under the run directory's lock; a gate that fails is reported, too.

    `remember` keeps the context's settings for the next command on this run directory. The steps of `again` run even
    where nothing has changed.
    """
    with context.run.lock():
        if remember:
            context.run.remember(context.recipe, context.base)
        for step in again(context):
            context.run.forget(step.name)
        try:
            advance(context, steps(context))
        except GateError:
            advance(context, (report_step(context),))
            raise
        advance(context, (report_step(context),))


def bench_settings(sets: Sequence[str]) -> dict[str, Any]:
    """`bench.seconds=10` and the like as {"seconds": 10}; values are YAML.

    Raises:
        InputError: one is not of that form, or not of the recipe's section `bench`.
    """
    found = {}
    for given in sets:
        key, equals, value = given.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or section != "bench" or name not in recipe.Bench.model_fields:
            known = ", ".join(f"bench.{name}" for name in recipe.Bench.model_fields)
            raise InputError(f"--set {given}: is none of bench's settings", f"KEY=VALUE, KEY one of: {known}")
        try:
            found[name] = yaml.safe_load(value)
            recipe.Bench.model_validate({name: found[name]})
        except (yaml.YAMLError, ValidationError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "no YAML"
            raise InputError(f"--set {given}: {why}") from None
    return found


def reopen(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> Context:
    """An existing run with some recipe settings replaced: {"quantize": {"enabled": True}}."""
    found = run.find(path)
    if not found.hashes("distill"):
        raise InputError(f"{path}: has no trained student yet", "run `edgedistill train` with its recipe to the end")
    known, base = found.recipe()
    changed = known.model_dump(mode="json")
    for name, values in sections.items():
        changed[name] |= values
    wanted = recipe.Recipe.model_validate(changed)
    check.bench(wanted, base)
    return Context(recipe=wanted, base=base, run=found)
