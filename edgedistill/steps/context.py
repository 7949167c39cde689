"""What the steps of one run share, each piece loaded when first asked for: images, sources, their outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.console import bar
from edgedistill.errors import InputError
from edgedistill.recipe.schema import Recipe
from edgedistill.records import Checkpoint, Guarded, OnnxModel, SourceWeights, StudentSpec
from edgedistill.run import artifacts, environment
from edgedistill.run.directory import Run
from edgedistill.run.files import digest

if TYPE_CHECKING:
    from edgedistill.data.shards import View
    from edgedistill.data.splits import Splits
    from edgedistill.distill.batches import Material
    from edgedistill.distill.methods import Method
    from edgedistill.distill.stream import LabeledShard, Stream
    from edgedistill.distill.teachers import Teacher
    from edgedistill.sources.outputs import Network, SourceOutputs

SMALLEST_PX = 32


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the leader of several processes asks of the others: a kind of work (workers.py), in which run, on what."""

    recipe: Recipe
    base: Path
    run: Path
    work: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """A recipe at work in a run directory. `base` is where the recipe's relative paths start from.

    `recipe` is the one with every source in place: a source given as a recipe has become the run it was trained in.
    """

    recipe: Recipe
    base: Path
    run: Run

    def call(self, work: str, **arguments: Any) -> None:
        """Ask the other processes, where there are any, to take part."""
        from edgedistill.distributed import processes

        processes.order(Order(recipe=self.recipe, base=self.base, run=self.run.path, work=work, arguments=arguments))

    @cached_property
    def candidates(self) -> list[StudentSpec]:
        """The student space with costs; the number of classes comes from the data."""
        from edgedistill.data import datasets
        from edgedistill.students import space

        return space.candidates(self.recipe.student, len(datasets.listing(self.recipe.data, self.base).classes))

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The sources, loaded and frozen, in the recipe's order."""
        from edgedistill.sources import registry

        return {section.name: registry.load(section, self.base) for section in self.recipe.sources}

    @cached_property
    def splits(self) -> Splits:
        """The target's images, decoded once at the largest size that a source or a student takes."""
        from edgedistill.data.splits import load_splits

        sizes = [spec.input_px for spec in self.candidates] + [net.input_px for net in self.networks.values()]
        px = max([SMALLEST_PX, *sizes])
        return load_splits(self.recipe.data, self.base, cache=self.run.cache / "images", seed=self.recipe.seed, px=px)

    @cached_property
    def source_outputs(self) -> dict[str, SourceOutputs]:
        """Features and pseudo-labels of every source on the whole train store, from the cache or computed once."""
        from edgedistill.distributed import processes
        from edgedistill.sources.outputs import compute_outputs

        store, cache, leads = self.splits.train, self.run.cache / "sources", processes.team().leads
        by_source = {}
        for name, network in self.networks.items():
            call = partial(self.call, "answer", name=name) if leads else None
            with bar(f"{name} on {store.n} images at {network.input_px} px", store.n) as progress:
                try:
                    by_source[name] = compute_outputs(
                        network, store.at, data_hash=store.pixels_hash, cache=cache, progress=progress, call=call
                    )
                except InputError as error:
                    raise InputError(f"sources.{name}: {error.message}", error.fix) from None
        return by_source

    @cached_property
    def shards(self) -> tuple[LabeledShard, ...]:
        """The recipe's shards with every source's outputs, from the cache or computed once, a shard at a time.

        Several processes divide the shards among them. Images with the pixels of one of `data` take no part.
        """
        import numpy as np

        from edgedistill.data.shards import addresses, fresh_rows
        from edgedistill.distill.stream import LabeledShard
        from edgedistill.distributed import processes
        from edgedistill.sources.shard_outputs import label_shard

        if self.recipe.unlabeled is None:
            return ()
        urls, splits, team = addresses(self.recipe.unlabeled, self.base), self.splits, processes.team()
        label = partial(label_shard, view=self.view, networks=self.networks, cache=self.run.cache)
        if team.leads:
            self.call("label")
        with bar(f"label {len(urls)} shards", len(urls)) as progress:
            for url in urls[team.rank :: team.size]:
                label(url, progress=progress)
        processes.gathered(None)  # the other processes have labeled their shards
        labeled = [label(url) for url in urls]
        data_hashes = np.concatenate([splits.train.hashes, splits.held_out.store.hashes])
        rows = fresh_rows([shard for shard, _ in labeled], data_hashes)
        return tuple(
            LabeledShard(shard=shard, rows=rows_N, outputs=outputs)
            for (shard, outputs), rows_N in zip(labeled, rows, strict=True)
        )

    @property
    def view(self) -> View:
        """How an image becomes a stored square."""
        from edgedistill.data.shards import View

        return View(px=self.splits.train.px, fit=self.recipe.data.fit)

    @property
    def method(self) -> Method:
        """The recipe's distillation method."""
        from edgedistill.distill.methods import METHODS

        return METHODS[self.recipe.distill.method.name]

    @property
    def weights(self) -> SourceWeights:
        """The weights of the sources, as the step weigh wrote them."""
        return artifacts.WEIGHTS.read(self.run)

    def stream(self, px: int) -> Stream | None:
        """The shards' images at a student's input size; None where the recipe names no shards."""
        if px not in self._streams:  # it holds images in memory: one size at a time
            self._streams.clear()
            self._streams[px] = self._stream(px)
        return self._streams[px]

    @cached_property
    def _streams(self) -> dict[int, Stream | None]:
        return {}

    def _stream(self, px: int) -> Stream | None:
        from edgedistill.distill.stream import Stream

        if self.recipe.unlabeled is None:
            return None
        options = self.recipe.distill.method.options
        return Stream(
            parts=self.shards,
            view=self.view,
            px=px,
            seed=self.recipe.seed,
            mixed=self.recipe.unlabeled.mixed,
            sources=tuple(self.method.shares(self.weights.alphas, options)),
            teacher=self.teacher.answer if "teacher" in self.method.needs else None,
        )

    @cached_property
    def teacher(self) -> Teacher:
        """The sources' probes on the labeled images, mixed: every train image in the target's classes.

        Train images with the pixels of a test image take no part; their rows are uniform.
        """
        import numpy as np

        from edgedistill.distill.teachers import TEACHERS
        from edgedistill.recipe.options import bound_options

        choice, splits, classes = self.recipe.distill.teacher, self.splits, len(self.splits.classes)
        fit = TEACHERS[choice.name].fit
        rows = np.sort(np.concatenate([splits.labeled_rows, splits.val_rows, splits.unlabeled_rows]))
        teacher = fit(
            features={name: outputs.features_ND[rows] for name, outputs in self.source_outputs.items()},
            alphas=self.weights.alphas,
            rows=np.searchsorted(rows, splits.labeled_rows),
            labels_L=splits.labeled_labels,
            classes=classes,
            **bound_options(fit, choice.options),
        )
        probs_NC = np.full((splits.train.n, classes), 1.0 / classes, dtype=np.float32)
        probs_NC[rows] = teacher.probs_NC
        return replace(teacher, probs_NC=probs_NC)

    def material(self, px: int, held_out: int = 0) -> Material:
        """What a student of input size `px` learns from, less `held_out` unlabeled images (a quarter at most)."""
        import numpy as np

        from edgedistill.distill.batches import Material

        splits = self.splits
        held_out_rows = spread(len(splits.unlabeled_rows), min(held_out, len(splits.unlabeled_rows) // 4))
        return Material(
            images_NHWC=splits.train.at(px),
            labeled=splits.labeled_rows,
            labels=splits.labeled_labels,
            unlabeled=np.delete(splits.unlabeled_rows, held_out_rows),
            val=splits.val_rows,
            val_labels=splits.val_labels,
            source_probs={name: outputs.probs_NK for name, outputs in self.source_outputs.items()},
            alphas=self.weights.alphas,
            held_out=splits.unlabeled_rows[held_out_rows],
            teacher_NC=self.teacher.probs_NC if "teacher" in self.method.needs else None,
            stream=self.stream(px),
        )

    @property
    def inventory(self) -> Path | None:
        """The device inventory that the recipe names, or deploy/devices.yaml where one lies in the current folder."""
        from edgedistill.devices.inventory import path_for

        return path_for(self.recipe.bench.inventory, self.base)

    def device_facts(self, name: str) -> list[Any]:
        """What a latency there depends on besides the graph: the same name may come to mean another machine."""
        from edgedistill.devices import inventory as devices

        device = devices.find(devices.load(self.inventory), name)
        place = {name: value for name, value in asdict(device).items() if name != "backends"}
        return [place, environment.machine() if device.transport == "local" else []]

    @property
    def checkpoint(self) -> Checkpoint:
        """The trained student of this run."""
        return artifacts.RESULT.read(self.run)

    @property
    def exported(self) -> list[OnnxModel]:
        """fp32, and fp16 where it was asked for."""
        return list(artifacts.EXPORTED.read(self.run))

    @property
    def models(self) -> list[OnnxModel]:
        """Every graph that was made, fp32 first."""
        return [*self.exported, *artifacts.QUANTIZED.read(self.run)]

    @property
    def guarded(self) -> tuple[Guarded, ...]:
        """What the accuracy guard found, a target each; none where nothing was quantized."""
        return artifacts.GUARD.find(self.run) or ()

    @property
    def default_model(self) -> str:
        """Name of the graph that a CPU should run: what was kept for it, else fp32."""
        kept = artifacts.KEPT.read(self.run)
        return next((entry.artefact for entry in kept if entry.target == "cpu"), self.models[0].name)

    def test_images(self, px: int) -> tuple[Any, Any]:
        """The test images at `px`, uint8 [N, px, px, 3], and their labels [N]."""
        held = self.splits.test()
        return held.store.at(px), held.labels_N

    def calibration_images(self, px: int) -> Any:
        """Images of train, disjoint from val and test by their pixels, uint8 [N, px, px, 3]."""
        rows = self.splits.calibration_rows(self.recipe.quantize.calibration_images, self.recipe.seed)
        return self.splits.train.at(px)[rows]

    def data_facts(self) -> dict[str, Any]:
        """What the report says of the data, and the hash of what was used."""
        splits, data = self.splits, self.recipe.data
        counts = {"labeled": splits.labeled_rows, "val": splits.val_rows, "unlabeled": splits.unlabeled_rows}
        return {
            "kind": data.kind,
            "classes": list(splits.classes),
            "licence": splits.licence,
            "score": data.score,
            **{name: len(rows) for name, rows in counts.items()},
            "test": splits.n_test,
            "corrupt": list(splits.corrupt),
            "duplicates": splits.duplicates,
            "data_hash": splits.data_hash,
            "test_hash": digest([splits.held_out.store.hashes.tolist(), splits.held_out.labels_N.tolist()]),
            "store_px": splits.train.px,
            **self.shard_facts(),
        }

    def shard_facts(self) -> dict[str, Any]:
        """How many more images there are in shards, how many take no part, and the hash of them all."""
        if self.recipe.unlabeled is None:
            return {}
        parts = self.shards
        return {
            "shards": len(parts),
            "streamed": sum(len(part.rows) for part in parts),
            "streamed_corrupt": sum(len(part.shard.corrupt) for part in parts),
            "streamed_duplicates": sum(len(part.shard.kept) - len(part.rows) for part in parts),
            "shards_hash": digest([part.shard.data_hash for part in parts]),
        }


def spread(n: int, wanted: int) -> Any:
    """At most `wanted` of n rows, evenly spread, ascending."""
    import numpy as np

    return np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(np.int64))
