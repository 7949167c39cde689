"""weigh: each source's similarity scores on the labeled images, and the source weights computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from edgedistill.console import bar, say
from edgedistill.records import MoreLabels, SourceWeights
from edgedistill.report import weights as report_weights
from edgedistill.run import artifacts
from edgedistill.run.files import digest
from edgedistill.steps.context import Context
from edgedistill.steps.data_facts import data_facts
from edgedistill.steps.step import Step

if TYPE_CHECKING:
    import numpy as np


def inputs(context: Context) -> dict[str, str]:
    """Fingerprints of the images, the shards and the sources."""
    from edgedistill.data import datasets, label_file, shards
    from edgedistill.labels import divide
    from edgedistill.sources import registry

    recipe, base = context.recipe, context.base
    # "sources." keeps a source that is called data apart from the data
    fingerprints = {f"sources.{section.name}": registry.fingerprint(section, base) for section in recipe.sources}
    fingerprints["data"] = datasets.fingerprint(recipe.data, base)
    if recipe.data.protocol != "test" and recipe.data.near_copies != "ignore":
        fingerprints["division"] = str(divide.VERSION)
    if ways := label_file.counts(recipe.data, base):
        fingerprints["how"] = digest(ways)
    if recipe.unlabeled:
        fingerprints["unlabeled"] = shards.fingerprint(recipe.unlabeled, base)
        if changes := shards.changes(recipe.unlabeled, base, context.run.cache):
            fingerprints["changes"] = changes
    return fingerprints


def work(context: Context) -> None:
    """Score every source on the labeled images, and compute the weights."""
    import numpy as np

    from edgedistill.similarity.weigh import weigh_sources

    splits, names = context.splits, [section.name for section in context.recipe.sources]
    artifacts.DATA.write(context.run, data_facts(context))
    artifacts.SOURCES.write(context.run, {name: network.facts() for name, network in context.networks.items()})
    weights = SourceWeights(metric="none", probe_images=0, power=0.0, sources=())
    if names:
        settings = context.recipe.weigh
        # all labeled images, including val: a score from fewer labels is noisier
        rows = np.concatenate([splits.labeled_rows, splits.val_rows])
        labels_N = np.concatenate([splits.labeled_labels, splits.val_labels])
        probe = {name: outputs.rows(rows) for name, outputs in context.source_outputs.items()}
        units_N = splits.units_N[rows]
        rounds = len(names) * len({settings.metric.name, *(choice.name for choice in settings.also)})
        with bar("score the sources", rounds) as progress:
            weights = weigh_sources(
                probe, labels_N, settings=settings, seed=context.recipe.seed, units_N=units_N, progress=progress
            )
        say(report_weights.table(weights))
        if context.fold is None:
            more = more_labels(context, {name: features_LD for name, (features_LD, _) in probe.items()})
            say(more.text)
            artifacts.MORE_LABELS.write(context.run, more)
    artifacts.WEIGHTS.write(context.run, weights)


def more_labels(context: Context, features: Mapping[str, np.ndarray]) -> MoreLabels:
    """Whether more labels pay.

    Args:
        context: the run.
        features: each source's features of the labeled images, then of those of val, [L, D].
    """
    import numpy as np

    from edgedistill.data import label_file
    from edgedistill.distill.more_labels import worth

    splits = context.splits
    rows = np.concatenate([splits.labeled_rows, splits.val_rows])
    labels_L = np.concatenate([splits.labeled_labels, splits.val_labels])
    record = worth(features, labels_L, np.unique(splits.units_N[rows], return_inverse=True)[1])
    how = label_file.counts(context.recipe.data, context.base)
    return replace(record, biased=any(how.get(name) for name in label_file.CHOSEN))


STEP = Step(
    name="weigh",
    version=4,
    sections=("seed", "data", "unlabeled", "sources", "weigh"),
    inputs=inputs,
    outputs=(artifacts.DATA.path, "weigh/*.json"),
    work=work,
)
