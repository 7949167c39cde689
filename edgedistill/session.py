"""Start, continue and finish a run: resolve the recipe, lock the run directory, run the pipeline's steps."""

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
from edgedistill.pipeline import TRAIN, no_steps, report_step
from edgedistill.recipe.file import Document, read_recipe
from edgedistill.recipe.schema import Bench, Recipe, Source
from edgedistill.run import artifacts, environment
from edgedistill.run.directory import find_run, point_latest, require_usable_root, run_directory
from edgedistill.steps import workers
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step, run_steps


def train(document: Document, recipe: Recipe, root: Path) -> Context:
    """Run weigh, search and distill: from a recipe to a trained student in its run directory under `root`.

    A source that is itself a recipe is trained first, in its own run directory under `root`.

    Raises:
        InputError: the recipe names something that does not exist.
        EdgeDistillError: another process uses the run directory, or a step failed.
    """
    require_usable_root(root)
    requested = Context(recipe=recipe, base=document.base, run=run_directory(recipe, root))
    if not requested.run.hashes("search"):
        check_budget(requested)
    context = replace(requested, recipe=with_trained_sources(recipe, (document,), root))
    run_training(context, document)
    point_latest(context.run)
    return context


def run_training(context: Context, document: Document) -> None:
    """Run the steps up to the trained student, under the run directory's lock."""
    workers.require_divisible_batches(context.recipe)
    if not context.run.up_to_date("weigh", TRAIN[0].key(context)):
        prepare(context)
    with context.run.lock():
        context.run.save_recipe(context.recipe, document)
        if not context.run.up_to_date("distill", TRAIN[-1].key(context)):
            artifacts.ENVIRONMENT.write(context.run, environment.describe())
        run_steps(context, TRAIN)


def prepare(context: Context) -> None:
    """Load all inputs that may be missing or broken, before the run directory is written to."""
    check_budget(context)
    say(f"images     {context.splits.train.n} to train on, {context.splits.n_test} to test")


def check_budget(context: Context) -> None:
    """Raise InputError if no candidate meets the budget, or its latency device is not in the inventory."""
    from edgedistill.devices import inventory
    from edgedistill.students import space

    bound = context.recipe.student.budget.latency_ms
    if bound:
        inventory.find(inventory.load(context.inventory), bound.device)
    space.feasible(context.candidates, context.recipe.student.budget)


def with_trained_sources(recipe: Recipe, ancestors: tuple[Document, ...], root: Path) -> Recipe:
    """Replace every `recipe:` source of a recipe by the run that it was trained in, after training it if necessary.

    `ancestors` are the recipe's own document and those that include it, innermost last: none of them can be its source.
    """

    def trained(section: Source) -> Source:
        recipe_path = section.options.get("recipe")
        if section.kind != "run" or not recipe_path:
            return section
        document = read_recipe(ancestors[-1].base / recipe_path)
        if any(document.path.samefile(outer.path) for outer in ancestors):
            raise InputError(
                f"{ancestors[-1].path}: sources.{section.name}: {document.path} would be a source of itself"
            )
        inner = check.load(document)
        say(f"source {section.name}: {document.path.name}")
        resolved = with_trained_sources(inner, (*ancestors, document), root)
        context = Context(recipe=resolved, base=document.base, run=run_directory(inner, root))
        run_training(context, document)
        path = str(context.run.path.resolve())
        return Source.model_validate({**section.model_dump(exclude={"recipe"}), "path": path})

    return recipe.model_copy(update={"sources": tuple(trained(section) for section in recipe.sources)})


def finish(
    context: Context,
    steps: Callable[[Context], Sequence[Step]],
    remember: bool = False,
    again: Callable[[Context], Sequence[Step]] = no_steps,
) -> None:
    """Run steps after training, and the report, under the run directory's lock; a failed gate is reported, too.

    `remember` saves the context's settings for the next command on this run directory. The steps of `again` run even
    if nothing has changed.
    """
    with context.run.lock():
        if remember:
            context.run.save_resolved_recipe(context.recipe, context.base)
        for step in again(context):
            context.run.invalidate(step.name)
        try:
            run_steps(context, steps(context))
        except GateError:
            run_steps(context, (report_step(context),))
            raise
        run_steps(context, (report_step(context),))


def bench_settings(sets: Sequence[str]) -> dict[str, Any]:
    """Parse assignments such as `bench.seconds=10` into {"seconds": 10}; values are YAML.

    Raises:
        InputError: an assignment is malformed, or is no setting of the recipe's section `bench`.
    """
    settings = {}
    for assignment in sets:
        key, equals, value = assignment.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or section != "bench" or name not in Bench.model_fields:
            choices = ", ".join(f"bench.{name}" for name in Bench.model_fields)
            raise InputError(f"--set {assignment}: is not a setting of bench", f"KEY=VALUE, KEY one of: {choices}")
        try:
            settings[name] = yaml.safe_load(value)
            Bench.model_validate({name: settings[name]})
        except (yaml.YAMLError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "no YAML"
            raise InputError(f"--set {assignment}: {reason}") from None
    return settings


def reopen(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> Context:
    """Open an existing run with some settings of its recipe replaced, such as {"quantize": {"enabled": True}}.

    Raises:
        InputError: the run has no trained student, or a device or backend is unknown.
    """
    run = find_run(path)
    if not run.hashes("distill"):
        raise InputError(f"{path}: has no trained student yet", "run `edgedistill train` with its recipe to the end")
    recorded, base = run.recipe()
    sections_by_name = recorded.model_dump(mode="json")
    for name, values in sections.items():
        sections_by_name[name] |= values
    recipe = Recipe.model_validate(sections_by_name)
    check.bench(recipe, base)
    return Context(recipe=recipe, base=base, run=run)
