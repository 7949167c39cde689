"""choose: which models of the catalog `sources: auto` stands for, asked on a few labeled images.

These train or are val; test is not asked. Since val has a part in the choice, what it says of the student that was
taught by the chosen ones is a little too good.

With folds nothing is asked: every label is scored by a student that was made without it, and a choice by all labels
would know them. Models of as many domains as possible are taken instead, and each fold weighs them anew.

N images that are asked about, S models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedistill.console import bar, say
from edgedistill.errors import InputError
from edgedistill.recipe.options import bound_options
from edgedistill.records import MetricScore
from edgedistill.run import artifacts
from edgedistill.sources import chosen
from edgedistill.sources.catalog import Listed
from edgedistill.steps.context import SMALLEST_PX, Context
from edgedistill.steps.step import Step

if TYPE_CHECKING:
    from edgedistill.data.splits import Splits
    from edgedistill.similarity.weigh import Pair

NOT_SCORED = "no model can be scored, as no two classes have two labels that are not of one group"


def inputs(context: Context) -> dict[str, str]:
    """The fingerprint of the images. What is installed or cached is no input: a run that goes on keeps its choice."""
    from edgedistill.data import datasets

    return {"data": datasets.fingerprint(context.recipe.data, context.base)}


def work(context: Context) -> None:
    """Ask the models, and write the chosen ones as sections of a recipe."""
    section = chosen.auto_section(context.recipe)
    assert section is not None, "the step applies to recipes with a source of kind auto"
    options = {"most": chosen.MOST, "images": chosen.IMAGES}
    options |= bound_options(chosen.auto, section.options)
    candidates = chosen.candidates(context.recipe, section)
    say(candidates.told())
    reasons, models = dict(candidates.refused), list(candidates.models)
    scores: dict[str, MetricScore] = {}
    if len(models) > options["most"]:
        splits = _splits(context, models)
        if splits.protocol == "folds":
            models = _of_many_domains(models)
            say("sources    with folds every label is scored: as many domains as possible are taken, none is asked")
        else:
            scores, failures = _scores(context, splits, models, options["images"])
            reasons |= failures
            models = [model for model in models if model.entry.name not in failures]
            if models and not scores:
                say(f"sources    {NOT_SCORED}: as many domains as possible are taken")
            models = sorted(models, key=lambda model: _rank(model, scores)) if scores else _of_many_domains(models)
    taken = _within(models, options["most"], reasons)
    say(f"sources    {', '.join(model.entry.name for model in taken) or 'none: the student learns from labels alone'}")
    artifacts.CHOSEN.write(context.run, _record(candidates.all_models, taken, reasons=reasons, scores=scores))


def _splits(context: Context, models: Sequence[Listed]) -> Splits:
    """The images, at the largest size of the models and students: without data.store_px they may be decoded again."""
    from edgedistill.data.load import load_splits

    sizes = [spec.input_px for spec in context.candidates] + [model.input_px for model in models]
    cache = context.run.cache / "images"
    return load_splits(context.recipe.data, context.base, cache, context.recipe.seed, px=max([SMALLEST_PX, *sizes]))


def _scores(
    context: Context, splits: Splits, models: Sequence[Listed], n_images: int
) -> tuple[dict[str, MetricScore], dict[str, str]]:
    """Each model's score on labeled images by the recipe's metric, and why some models gave none."""
    from edgedistill.similarity.weigh import asked_rows, weigh_sources

    rows = np.concatenate([splits.labeled_rows, splits.val_rows])
    labels_N = np.concatenate([splits.labeled_labels, splits.val_labels])
    asked = asked_rows(labels_N, splits.units_N[rows], n_images)
    asked = asked[np.argsort(rows[asked])]
    images_NHWC = np.asarray(splits.train.images_NHWC[rows[asked]])
    labels_N, units_N = labels_N[asked], splits.units_N[rows[asked]]
    outputs, failures = _outputs(context, models, images_NHWC)
    if not outputs:
        return {}, failures
    metric = context.recipe.weigh.metric
    settings = context.recipe.weigh.model_copy(update={"also": (), "bootstrap": 10})
    weights = weigh_sources(outputs, labels_N, settings=settings, seed=context.recipe.seed, units_N=units_N)
    scores = {source.name: source.scores[metric.name] for source in weights.sources if metric.name in source.scores}
    unscored = {
        name: f"{metric.name} needs classes, and it has none" for name in outputs if scores and name not in scores
    }
    return scores, failures | unscored


def _outputs(
    context: Context, models: Sequence[Listed], images_NHWC: np.ndarray
) -> tuple[dict[str, Pair], dict[str, str]]:
    """Features and probabilities of each model on the images; one model is in memory at a time."""
    from edgedistill.data.images import resize
    from edgedistill.sources import registry, text
    from edgedistill.sources.outputs import infer

    outputs: dict[str, Pair] = {}
    failures: dict[str, str] = {}
    recipe = context.recipe.model_copy(update={"sources": tuple(model.entry.section() for model in models)})
    sections = {section.name: section for section in text.with_class_names(recipe, context.base).sources}
    with bar(f"ask {len(models)} models about {len(images_NHWC)} images", len(models)) as progress:
        for name, section in sections.items():
            try:
                network = registry.load(section, context.base)
                outputs[name] = infer(network, np.stack([resize(image, network.input_px) for image in images_NHWC]))
            except (InputError, OSError) as error:  # a download that fails is an OSError
                failures[name] = f"gave no answer ({str(error).splitlines()[0]})"
                say(f"{name}: {failures[name]}")
            progress(1)
    return outputs, failures


def _rank(model: Listed, scores: Mapping[str, MetricScore]) -> tuple[float, float]:
    """The highest score first, of equal ones the cheaper model."""
    return -scores[model.entry.name].score, model.entry.gmacs


def _of_many_domains(models: Sequence[Listed]) -> list[Listed]:
    """The models in the catalog's order, the first of each domain before the second of any."""
    counts: dict[str, int] = {}
    turns = []
    for model in models:
        counts[model.entry.domain] = counts.get(model.entry.domain, 0) + 1
        turns.append(counts[model.entry.domain])
    return [models[index] for index in np.argsort(turns, kind="stable")]


def _within(models: Sequence[Listed], most: int, reasons: dict[str, str]) -> list[Listed]:
    """The first `most` of the models that are in memory together; the reasons say why not the others."""
    taken: list[Listed] = []
    for model in models:
        megabytes = model.entry.megabytes + sum(other.entry.megabytes for other in taken)
        if len(taken) == most:
            reasons[model.entry.name] = f"{most} come before it"
        elif megabytes > chosen.memory_mb():
            reasons[model.entry.name] = (
                f"takes {megabytes:.0f} MB with those before it, a quarter of the memory is less"
            )
        else:
            taken.append(model)
    return taken


def _record(
    models: Sequence[Listed],
    taken: Sequence[Listed],
    *,
    reasons: Mapping[str, str],
    scores: Mapping[str, MetricScore],
) -> dict[str, Any]:
    """The content of sources.json."""

    def fate(model: Listed) -> dict[str, Any]:
        name = model.entry.name
        score = scores.get(name)
        numbers = {"score": score.score, "low": score.low, "high": score.high} if score else {}
        reason = "" if model in taken else reasons[name]
        return {"name": name, "taken": model in taken, **({"reason": reason} if reason else {}), **numbers}

    sections = [model.entry.section().model_dump(mode="json", exclude_none=True) for model in taken]
    return {"sources": sections, "catalog": [fate(model) for model in models]}


def applies(context: Context) -> bool:
    """Whether the recipe has a source of kind auto."""
    return chosen.auto_section(context.recipe) is not None


STEP = Step(
    name="choose",
    version=1,
    sections=("seed", "data", "sources", "weigh"),
    inputs=inputs,
    outputs=(artifacts.CHOSEN.path,),
    work=work,
    applies=applies,
)
