"""weigh: each source's similarity scores on the labeled images, and the source weights computed from them."""

from __future__ import annotations

from edgedistill.console import bar, say
from edgedistill.records import SourceWeights
from edgedistill.report import weights as report_weights
from edgedistill.run import artifacts
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step


def inputs(context: Context) -> dict[str, str]:
    """Fingerprints of the images, the shards and the sources."""
    from edgedistill.data import datasets, shards
    from edgedistill.sources import registry

    recipe, base = context.recipe, context.base
    fingerprints = {section.name: registry.fingerprint(section, base) for section in recipe.sources}
    fingerprints["data"] = datasets.fingerprint(recipe.data, base)
    if recipe.unlabeled:
        fingerprints["unlabeled"] = shards.fingerprint(recipe.unlabeled, base)
    return fingerprints


def work(context: Context) -> None:
    """Score every source on the labeled images, and compute the weights."""
    import numpy as np

    from edgedistill.similarity.weigh import weigh_sources

    splits, names = context.splits, [section.name for section in context.recipe.sources]
    artifacts.DATA.write(context.run, context.data_facts())
    artifacts.SOURCES.write(context.run, {name: network.facts() for name, network in context.networks.items()})
    weights = SourceWeights(metric="none", probe_images=0, power=0.0, sources=())
    if names:
        settings = context.recipe.weigh
        # all labeled images, including val: a score from fewer labels is noisier
        rows = np.concatenate([splits.labeled_rows, splits.val_rows])
        labels_N = np.concatenate([splits.labeled_labels, splits.val_labels])
        probe = {
            name: (outputs.features_ND[rows], outputs.probs_NK[rows])
            for name, outputs in context.source_outputs.items()
        }
        rounds = len(names) * len({settings.metric.name, *(choice.name for choice in settings.also)})
        with bar("score the sources", rounds) as progress:
            weights = weigh_sources(probe, labels_N, settings=settings, seed=context.recipe.seed, progress=progress)
        say(report_weights.table(weights))
    artifacts.WEIGHTS.write(context.run, weights)


STEP = Step(
    name="weigh",
    version=1,
    sections=("seed", "data", "unlabeled", "sources", "weigh"),
    inputs=inputs,
    outputs=(artifacts.DATA.path, "weigh/*.json"),
    work=work,
)
