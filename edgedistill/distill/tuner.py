"""Tuning of sources for a teacher: what is trained, and what the tuned nets answer, is kept in the cache.

N images that the teacher answers, L of them labeled, D features, C target classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from edgedistill.console import bar, say
from edgedistill.distill.probes import Floats, Rows, softmax
from edgedistill.distill.teachers import Column, Tuned
from edgedistill.distill.tuning import VERSION, TunedSource, head_scores, tune, tuned_network
from edgedistill.errors import InputError
from edgedistill.labels.protocol import assign_folds
from edgedistill.recipe.schema import Augment
from edgedistill.run.files import atomic, digest
from edgedistill.sources.outputs import Network, compute_outputs
from edgedistill.students.checkpoints import read_state

if TYPE_CHECKING:
    from edgedistill.data.splits import Store


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """Tunes sources to one set of labels; `tune` is what a teacher's `fit` takes.

    Attributes:
        network: the network of a source.
        store: all images.
        rows: rows of the labeled images in it, [L].
        labels_L: their classes.
        units_L: number of each one's set of copies or group, which is never divided.
        classes: C.
        answered: rows of the images that the teacher answers, in its order, [N].
        settings: how training images are augmented.
        seed: of the training.
        cache: folder of all caches.
        networks: the tuned networks so far, by the names of their columns.
    """

    network: Callable[[str], Network]
    store: Store
    rows: Rows
    labels_L: Rows
    units_L: Rows
    classes: int
    answered: Rows
    settings: Augment
    seed: int
    cache: Path
    networks: dict[str, Network] = field(default_factory=dict)

    def tune(self, ranked: Sequence[str], most: int) -> Tuned | None:
        """Tune the first of some sources that can be tuned; None if none can, or if the labels make no folds.

        Args:
            ranked: the sources, best first.
            most: how many to tune.
        """
        try:
            folds_L = assign_folds(self.labels_L, self.units_L, self.seed).folds_N
        except InputError:
            return None
        columns, features = {}, {}
        for source in [name for name in ranked if self.network(name).tunable][:most]:
            name = f"{source} (tuned)"
            network, source_outputs = self._tuned(source, folds_L)
            self.networks[name] = network
            features[name], columns[name] = source_outputs
        return Tuned(folds_L=folds_L, features=features, columns=columns) if columns else None

    def _tuned(self, name: str, folds_L: Rows) -> tuple[Network, tuple[Floats, Column]]:
        """The tuned network of a source; its features of the images that are answered, and its column."""
        source = self.network(name)
        identity = self._identity(source, folds_L)
        tuned = self._trained(name, folds_L, self.cache / "tuned" / identity)
        network = tuned_network(source, tuned.state, identity)
        with bar(f"{name}, tuned, on {self.store.n} images at {network.input_px} px", self.store.n) as progress:
            outputs = compute_outputs(
                network, self.store.resized, self.store.pixels_hash, self.cache / "sources", progress=progress
            )
        features_ND = outputs.features_ND[self.answered]
        predict = partial(_predict, {part: tuned.state[f"head.{part}"] for part in ("weight", "bias")})
        return network, (
            features_ND,
            Column(probs_NC=predict(features_ND), held_out_LC=tuned.held_out_LC, predict=predict),
        )

    def _identity(self, source: Network, folds_L: Rows) -> str:
        """Hash of all that a tuned source depends on."""
        facts = [source.sha256, source.input_px, source.mean, source.std, self.store.pixels_hash]
        labels = [self.rows.tolist(), self.labels_L.tolist(), folds_L.tolist(), self.classes]
        return digest([VERSION, *facts, *labels, self.settings.model_dump(mode="json"), self.seed])[:32]

    def _trained(self, name: str, folds_L: Rows, folder: Path) -> TunedSource:
        """A source after tuning, from the cache if it is there; of concurrent runs one tunes and the others wait."""
        from safetensors.torch import save_file

        source, weights, held_out = self.network(name), folder / "state.safetensors", folder / "held_out.npy"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not weights.exists():
                images_LHWC = self.store.resized(source.input_px)[self.rows]
                trainings = len(np.unique(folds_L[folds_L >= 0])) + 1
                with bar(f"tune {name} to {len(self.rows)} labels", trainings) as progress:
                    tuned = tune(
                        source,
                        images_LHWC,
                        self.labels_L,
                        self.classes,
                        folds_L=folds_L,
                        settings=self.settings,
                        seed=self.seed,
                        progress=progress,
                    )
                scored = folds_L >= 0
                is_right_L = tuned.held_out_LC.argmax(axis=1) == self.labels_L
                say(
                    f"  tuned {name} to {len(self.rows)} labels: {is_right_L[scored].mean():.1%} of {scored.sum()} "
                    "held-out ones right"
                )
                with atomic(held_out) as temporary, temporary.open("wb") as stream:
                    np.save(stream, tuned.held_out_LC)
                with atomic(weights) as temporary:
                    save_file(tuned.state, temporary)
        return TunedSource(state=read_state(weights), held_out_LC=np.load(held_out))


def _predict(head: dict[str, Any], features_MD: Floats) -> Floats:
    return softmax(head_scores(head, features_MD))
