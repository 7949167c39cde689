"""search: the best student within the budget after a short distillation, by its teacher's judgment and by val."""

from __future__ import annotations

from functools import partial
from importlib import metadata

from edgedistill.console import say
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps import candidate, distill, timing
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

VERSION = 4  # increased when search/search.py changes its choice: the step's version, equal for all workers


def inputs(context: Context) -> dict[str, str]:
    """Versions of the packages with initial weights and of what trainings use, hashes of the deployment settings."""
    from edgedistill.students.pretrained import LITE_PACKAGES, lite_names, package_fingerprint

    packages = [lite_names(variant)[0] for variant in LITE_PACKAGES]
    versions = {name: package_fingerprint(name) for name in ("timm", *packages)} | distill.inputs(context)
    return versions | deployment(context)


def deployment(context: Context, *, shared: bool = False) -> dict[str, str]:
    """Hashes of what a search depends on if candidates are timed or scored as int8 graphs; else empty.

    Args:
        context: the run.
        shared: whether each worker may have a device of its own, of one kind.
    """
    recipe, bound = context.recipe, context.recipe.student.budget.latency_ms
    hashes = {}
    if bound:
        device = timing.kind_of_device(context, bound.device) if shared else context.device_facts(bound.device)
        engines = [timing.engine_versions(context, bound.device)] if bound.backend == timing.ANY else []
        hashes["timed on"] = digest([device, timing.bench_settings(context), *engines])
    if bound or recipe.search.objective == "int8":
        method = recipe.quantize.method if recipe.search.objective == "int8" else None
        settings = [candidate.export_settings(context), recipe.quantize.calibration_images, method]
        hashes["exported by"] = digest(settings)
    return hashes


def identity(context: Context) -> str:
    """Hash of everything that a search reads: trials of workers with equal hashes are comparable."""
    recipe = context.recipe
    # sources by their weights and their preprocessing: their paths differ between machines
    sources = artifacts.SOURCES.read(context.run)
    facts = artifacts.DATA.read(context.run)
    data_hashes = {name: facts[name] for name in ("data_hash", "test_hash", "shards_hash") if name in facts}
    sections = recipe.sections(("seed", "data", "weigh", "student", "search", "distill"))
    packages = {name: metadata.version(name) for name in ("edgedistill", *candidate.EXPORTERS)}
    versions = packages | distill.inputs(context)
    order = recipe.unlabeled.mixed if recipe.unlabeled else None
    return digest([sections, sources, data_hashes, versions, deployment(context, shared=True), VERSION, order])


def work(context: Context) -> None:
    """Search among the students within the budget."""
    from edgedistill.distill import schedule
    from edgedistill.search import search

    recipe, folder = context.recipe, artifacts.STUDENT.path_in(context.run).parent
    if recipe.distill.steps == "auto":
        artifacts.SPEED.write(context.run, {"cores": schedule.speed()})
    winner = search.search(
        context.candidates,
        recipe.student.budget,
        settings=recipe.search,
        objective=partial(candidate.score, context),
        seed=recipe.seed,
        folder=folder,
        latency=partial(timing.latency_ms, context),
        name=recipe.name,
        identity=identity(context),
    )
    artifacts.STUDENT.write(context.run, winner)
    say(f"  {search.explain_choice(winner, folder)}")


STEP = Step(
    name="search",
    version=VERSION,
    sections=("seed", "data", "unlabeled", "student", "search", "distill"),
    after=("weigh",),
    inputs=inputs,
    outputs=(artifacts.STUDENT.path, artifacts.TRIALS.path, artifacts.SPEED.path),
    scratch=("search/study.journal*",),
    work=work,
)
