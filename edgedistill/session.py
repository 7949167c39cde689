"""Start, continue and finish a run: resolve the recipe, lock the run directory, run the pipeline's steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgedistill import check
from edgedistill.console import say
from edgedistill.errors import GateError, InputError
from edgedistill.pipeline import CHOOSE, TRAIN, export_steps, no_steps, report_step
from edgedistill.recipe.file import Document, read_recipe
from edgedistill.recipe.schema import Bench, Recipe, Source
from edgedistill.recipe.yaml_text import YamlTextError, parse
from edgedistill.run import artifacts, environment, hooks
from edgedistill.run.directory import find_run, point_latest, require_usable_root, restore, run_directory
from edgedistill.sources import chosen, text
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
    context = _train(document, recipe, root)
    with context.run.lock():
        context.run.save_recipe(context.recipe, document)
    return context


def run(document: Document, recipe: Recipe, root: Path, steps: Callable[[Context], Sequence[Step]]) -> Context:
    """`train`, then the further steps and the report; errors as of `train` and `finish`."""
    context = _train(document, recipe, root)
    finish(context, steps, save=lambda: context.run.save_recipe(context.recipe, document))
    return context


def _train(document: Document, recipe: Recipe, root: Path) -> Context:
    require_usable_root(root)
    requested = Context(recipe=recipe, base=document.base, run=run_directory(recipe, root))
    restore(requested.run)
    if not requested.run.hashes("search"):
        check_budget(requested)
    context = replace(requested, recipe=with_sources(requested, (document,), root))
    _run_training(context, document)
    point_latest(context.run)
    return context


def _run_training(context: Context, document: Document) -> None:
    """Run the steps up to the trained student, under the run directory's lock.

    A run that has a student keeps its recipe until the caller saves the new one: if the export of the new one fails,
    the artifacts are those of the old one.
    """
    run = context.run
    workers.require_divisible_batches(context.recipe)
    if not run.up_to_date("weigh", TRAIN[0].key(context)):
        prepare(context)
    with run.lock():
        former = run.manifest()["steps"].get("distill")
        if former is None:
            run.save_recipe(context.recipe, document)
            artifacts.ENVIRONMENT.write(run, environment.describe())

        def settle() -> None:
            if former is not None and former != run.manifest()["steps"].get("distill"):
                artifacts.ENVIRONMENT.write(run, environment.describe())

        run_steps(context, TRAIN, settle)


def prepare(context: Context) -> None:
    """Load all inputs that may be missing or broken, before the run directory is written to."""
    from edgedistill.distill import headless

    check_budget(context)
    headless.require_usable(context.recipe, context.headless)
    splits = context.splits
    if splits.folds:
        labels = len(splits.labeled_rows) + len(splits.val_rows)
        say(f"images     {splits.train.n} to train on; {labels} labels, scored in {splits.folds.count} folds")
    else:
        say(f"images     {splits.train.n} to train on, {splits.n_test} to test")


def check_budget(context: Context) -> None:
    """Raise InputError if no candidate meets the budget, or its latency device is not in the inventory."""
    from edgedistill.devices import inventory
    from edgedistill.students import space

    bound = context.recipe.student.budget.latency_ms
    if bound:
        inventory.find(inventory.load(context.inventory), bound.device)
    space.feasible(context.candidates, context.recipe.student.budget)


def with_sources(context: Context, ancestors: tuple[Document, ...], root: Path) -> Recipe:
    """The recipe of a run with sources that can be loaded.

    A source `kind: auto` is replaced by those that the run chooses, or chose before. A source with `recipe:` is
    replaced by the run that it was trained in, after training it if necessary. Text sources get the classes' names.

    `ancestors` are the recipe's own document and those that include it, innermost last: none of them can be its source.
    """

    def trained(section: Source) -> Source:
        recipe_path = section.options.get("recipe")
        if section.kind != "run" or not recipe_path:
            return section
        document = read_recipe(ancestors[-1].base / recipe_path)
        check.refuse_own_source(section.name, document, ancestors)
        inner = check.load(document)
        say(f"source {section.name}: {document.path.name}")
        requested = Context(recipe=inner, base=document.base, run=run_directory(inner, root))
        context = replace(requested, recipe=with_sources(requested, (*ancestors, document), root))
        with hooks.stage(section.name):
            _run_training(context, document)
        with context.run.lock():
            context.run.save_recipe(context.recipe, document)
        path = str(context.run.path.resolve())
        return Source.model_validate({**section.model_dump(exclude={"recipe"}), "path": path})

    if chosen.auto_section(context.recipe):
        with context.run.lock():
            run_steps(context, CHOOSE)
    recipe = text.with_class_names(chosen.with_chosen(context.recipe, context.run), ancestors[-1].base)
    return recipe.model_copy(update={"sources": tuple(trained(section) for section in recipe.sources)})


def finish(
    context: Context,
    steps: Callable[[Context], Sequence[Step]],
    save: Callable[[], object] | None = None,
    again: Callable[[Context], Sequence[Step]] = no_steps,
) -> None:
    """Run steps after training, and the report, under the run directory's lock; a failed gate is reported, too.

    `save` writes the settings for the next command on this run directory: at once if the run has no bundle, else with
    the new artifacts, so that settings and artifacts always belong together. The steps of `again` run even if nothing
    has changed.
    """
    run = context.run
    with run.lock():
        chain = steps(context)
        if save and not run.hashes("bundle"):
            save()
        repeated = [step.name for step in again(context)]
        try:
            run_steps(context, chain, save or (lambda: None), repeated)
        except GateError:
            run_steps(context, (report_step(context),))
            raise
        run_steps(context, (report_step(context),))


def export(path: Path, *, int8: bool | None, qat: bool | None) -> Context:
    """Export the student of a run, and keep the choice for the next command; None keeps the former one.

    Raises:
        InputError: the run has no trained student.
        EdgeDistillError: a step failed, or a graph differs from the student.
    """
    switches = {"enabled": int8, "qat": qat}
    if qat and reopen(path, {}).recipe.quantize.qat:
        switches["qat"] = None  # it is on already: keep its settings
    changes = {name: switch for name, switch in switches.items() if switch is not None}
    context = reopen(path, {"quantize": changes} if changes else {})
    save = partial(context.run.save_resolved_recipe, context.recipe, context.base) if changes else None
    finish(context, export_steps, save)
    return context


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
            settings[name] = parse(value).plain
            Bench.model_validate({name: settings[name]})
        except (YamlTextError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
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
    return Context(recipe=recipe, base=base, run=run, reopened=True)
