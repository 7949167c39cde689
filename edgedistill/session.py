"""How a run begins, goes on and ends: the recipe in place, the directory locked, the pipeline's steps advanced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgedistill import check
from edgedistill.console import say
from edgedistill.errors import GateError, InputError
from edgedistill.pipeline import TRAIN, nothing, report_step
from edgedistill.recipe.file import Document, read_recipe
from edgedistill.recipe.schema import Bench, Recipe, Source
from edgedistill.run import artifacts, environment
from edgedistill.run.directory import find_run, point_latest, run_directory, usable_root
from edgedistill.steps import workers
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step, run_steps


def train(document: Document, wanted: Recipe, root: Path) -> Context:
    """weigh, search, distill: from a recipe to a trained student in its run directory under `root`.

    A source that is given as a recipe is trained first, in a run directory beside this one.

    Raises:
        InputError: the recipe asks for what is not there.
        EdgeDistillError: another process works in the run directory, or a step failed.
    """
    usable_root(root)
    asked = Context(recipe=wanted, base=document.base, run=run_directory(wanted, root))
    if not asked.run.hashes("search"):
        affordable(asked)
    context = replace(asked, recipe=with_trained_sources(wanted, (document,), root))
    learn(context, document)
    point_latest(context.run)
    return context


def learn(context: Context, document: Document) -> None:
    """The steps up to the trained student, under the run directory's lock."""
    workers.divide_batches(context.recipe)
    if not context.run.up_to_date("weigh", TRAIN[0].key(context)):
        prepare(context)
    with context.run.lock():
        context.run.keep(context.recipe, document)
        if not context.run.up_to_date("distill", TRAIN[-1].key(context)):
            artifacts.ENVIRONMENT.write(context.run, environment.describe())
        run_steps(context, TRAIN)


def prepare(context: Context) -> None:
    """Load whatever can turn out to be missing or broken, before the run directory is written to."""
    affordable(context)
    say(f"images     {context.splits.train.n} to train on, {context.splits.n_test} to test")


def affordable(context: Context) -> None:
    """Raise InputError where no candidate meets the budget, or the device that bounds it is not in the inventory."""
    from edgedistill.devices import inventory
    from edgedistill.students import space

    bound = context.recipe.student.budget.latency_ms
    if bound:
        inventory.find(inventory.load(context.inventory), bound.device)
    space.feasible(context.candidates, context.recipe.student.budget)


def with_trained_sources(wanted: Recipe, within: tuple[Document, ...], root: Path) -> Recipe:
    """The recipe with every `recipe:` source replaced by the run that it was trained in, here and now if need be.

    `within` are the recipe's own document and those that led to it, innermost last: none of them can be its source.
    """

    def trained(section: Source) -> Source:
        given = section.options.get("recipe")
        if section.kind != "run" or not given:
            return section
        document = read_recipe(within[-1].base / given)
        if any(document.path.samefile(outer.path) for outer in within):
            raise InputError(f"{within[-1].path}: sources.{section.name}: {document.path} would be a source of itself")
        inner = check.load(document)
        say(f"source {section.name}: {document.path.name}")
        whole = with_trained_sources(inner, (*within, document), root)
        context = Context(recipe=whole, base=document.base, run=run_directory(inner, root))
        learn(context, document)
        path = str(context.run.path.resolve())
        return Source.model_validate({**section.model_dump(exclude={"recipe"}), "path": path})

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
            run_steps(context, steps(context))
        except GateError:
            run_steps(context, (report_step(context),))
            raise
        run_steps(context, (report_step(context),))


def bench_settings(sets: Sequence[str]) -> dict[str, Any]:
    """`bench.seconds=10` and the like as {"seconds": 10}; values are YAML.

    Raises:
        InputError: one is not of that form, or not of the recipe's section `bench`.
    """
    found = {}
    for given in sets:
        key, equals, value = given.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or section != "bench" or name not in Bench.model_fields:
            known = ", ".join(f"bench.{name}" for name in Bench.model_fields)
            raise InputError(f"--set {given}: is none of bench's settings", f"KEY=VALUE, KEY one of: {known}")
        try:
            found[name] = yaml.safe_load(value)
            Bench.model_validate({name: found[name]})
        except (yaml.YAMLError, ValidationError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "no YAML"
            raise InputError(f"--set {given}: {why}") from None
    return found


def reopen(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> Context:
    """An existing run with some recipe settings replaced: {"quantize": {"enabled": True}}."""
    found = find_run(path)
    if not found.hashes("distill"):
        raise InputError(f"{path}: has no trained student yet", "run `edgedistill train` with its recipe to the end")
    known, base = found.recipe()
    changed = known.model_dump(mode="json")
    for name, values in sections.items():
        changed[name] |= values
    wanted = Recipe.model_validate(changed)
    check.bench(wanted, base)
    return Context(recipe=wanted, base=base, run=found)
