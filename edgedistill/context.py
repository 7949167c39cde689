"""What the steps of one run share, each piece loaded when first asked for: images, sources, what the sources say."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill import environment
from edgedistill.progress import bar
from edgedistill.recipe import Recipe
from edgedistill.records import Checkpoint, Guarded, InputError, Kept, OnnxModel, SourceWeights, StudentSpec
from edgedistill.run import Run, atomic, digest, read_record

if TYPE_CHECKING:
    from edgedistill.training.batches import Material
    from edgedistill.training.data import Splits
    from edgedistill.training.outputs import Network, SourceOutputs
    from edgedistill.training.shards import View
    from edgedistill.training.stream import Labeled, Stream
    from edgedistill.training.teachers import Teacher

SMALLEST_PX = 32


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the leader of several processes asks of the others: a kind of work (crew.py), in which run, and on what."""

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
        from edgedistill.training import parallel

        parallel.order(Order(recipe=self.recipe, base=self.base, run=self.run.path, work=work, arguments=arguments))

    @cached_property
    def candidates(self) -> list[StudentSpec]:
        """The student space with costs; the number of classes comes from the data."""
        from edgedistill.training import datasets, student

        return student.candidates(self.recipe.student, len(datasets.listing(self.recipe.data, self.base).classes))

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The sources, loaded and frozen, in the recipe's order."""
        from edgedistill.training import sources

        return {section.name: sources.load(section, self.base) for section in self.recipe.sources}

    @cached_property
    def splits(self) -> Splits:
        """The target's images, decoded once at the largest size that a source or a student takes."""
        from edgedistill.training import data

        sizes = [spec.input_px for spec in self.candidates] + [net.input_px for net in self.networks.values()]
        px = max([SMALLEST_PX, *sizes])
        return data.load(self.recipe.data, self.base, cache=self.run.cache / "images", seed=self.recipe.seed, px=px)

    @cached_property
    def outputs(self) -> dict[str, SourceOutputs]:
        """Features and pseudo-labels of every source on the whole train store, from the cache or computed once."""
        from edgedistill.training import outputs, parallel

        store, found, leads = self.splits.train, {}, parallel.team().leads
        images_hash = digest([one.hex() if isinstance(one, bytes) else str(one) for one in store.hashes.tolist()])
        for name, net in self.networks.items():
            call = partial(self.call, "answer", name=name) if leads else None
            with bar(f"{name} on {store.n} images at {net.input_px} px", store.n) as advance:
                try:
                    found[name] = outputs.outputs(
                        net,
                        store.at,
                        data_hash=images_hash,
                        cache=self.run.cache / "sources",
                        progress=advance,
                        call=call,
                    )
                except InputError as error:
                    raise InputError(f"sources.{name}: {error.message}", error.fix) from None
        return found

    @cached_property
    def shards(self) -> tuple[Labeled, ...]:
        """The recipe's shards with what every source says of them, from the cache or computed once, a shard at a time.

        Several processes divide the shards among them. Images with the pixels of one of `data` take no part.
        """
        import numpy as np

        from edgedistill.training import parallel, shards
        from edgedistill.training.stream import Labeled

        if self.recipe.unlabeled is None:
            return ()
        urls, splits, team = shards.addresses(self.recipe.unlabeled, self.base), self.splits, parallel.team()
        if team.leads:
            self.call("label")
        with bar(f"label {len(urls)} shards", len(urls)) as advance:
            for url in urls[team.rank :: team.size]:
                shards.label(url, self.view, nets=self.networks, cache=self.run.cache, progress=advance)
        parallel.gathered(None)  # everybody's are done
        found = [shards.label(url, self.view, self.networks, self.run.cache) for url in urls]
        known = np.concatenate([splits.train.hashes, splits.held_out.store.hashes])
        rows = shards.fresh([one for one, _ in found], known)
        return tuple(
            Labeled(shard=one, rows=fresh, outputs=said) for (one, said), fresh in zip(found, rows, strict=True)
        )

    @property
    def view(self) -> View:
        """How an image becomes a stored square."""
        from edgedistill.training.shards import View

        return View(px=self.splits.train.px, fit=self.recipe.data.fit)

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
        from edgedistill.training.methods import NEEDS, shares_of
        from edgedistill.training.stream import Stream

        if self.recipe.unlabeled is None:
            return None
        method = self.recipe.distill.method
        weights = read_record(self.run / "weigh/weights.json", SourceWeights)
        return Stream(
            parts=self.shards,
            view=self.view,
            px=px,
            seed=self.recipe.seed,
            mixed=self.recipe.unlabeled.mixed,
            sources=tuple(shares_of(method.name, weights.alphas, method.options)),
            teacher=self.teacher.answer if "teacher" in NEEDS[method.name] else None,
        )

    @cached_property
    def teacher(self) -> Teacher:
        """The sources' probes on the labeled images, mixed: every train image in the target's classes.

        Train images with the pixels of a test image take no part; their rows say nothing (uniform).
        """
        import numpy as np

        from edgedistill.options import bound_options
        from edgedistill.training.teachers import TEACHERS

        choice, splits, classes = self.recipe.distill.teacher, self.splits, len(self.splits.classes)
        weights = read_record(self.run / "weigh/weights.json", SourceWeights)
        rows = np.sort(np.concatenate([splits.labeled_rows, splits.val_rows, splits.unlabeled_rows]))
        features = {name: one.features_ND[rows] for name, one in self.outputs.items()}
        made = TEACHERS[choice.name]
        labeled = np.searchsorted(rows, splits.labeled_rows)
        found = made(
            features=features,
            alphas=weights.alphas,
            rows=labeled,
            labels_L=splits.labeled_labels,
            classes=classes,
            **bound_options(made, choice.options),
        )
        probs_NC = np.full((splits.train.n, classes), 1.0 / classes, dtype=np.float32)
        probs_NC[rows] = found.probs_NC
        return replace(found, probs_NC=probs_NC)

    def material(self, px: int, held_out: int = 0) -> Material:
        """What a student of input size `px` learns from, less `held_out` unlabeled images (a quarter at most)."""
        import numpy as np

        from edgedistill.training import batches
        from edgedistill.training.methods import NEEDS

        splits, weights = self.splits, read_record(self.run / "weigh/weights.json", SourceWeights)
        apart = spread(len(splits.unlabeled_rows), min(held_out, len(splits.unlabeled_rows) // 4))
        probs = {name: one.probs_NK for name, one in self.outputs.items()}
        asked = "teacher" in NEEDS[self.recipe.distill.method.name]
        return batches.Material(
            images_NHWC=splits.train.at(px),
            labeled=splits.labeled_rows,
            labels=splits.labeled_labels,
            unlabeled=np.delete(splits.unlabeled_rows, apart),
            val=splits.val_rows,
            val_labels=splits.val_labels,
            probs=probs,
            alphas=weights.alphas,
            held_out=splits.unlabeled_rows[apart],
            teacher_NC=self.teacher.probs_NC if asked else None,
            stream=self.stream(px),
        )

    @property
    def inventory(self) -> Path | None:
        """The device inventory that the recipe names, or deploy/devices.yaml where one lies in the current folder."""
        from edgedistill.devices import inventory

        return inventory.path_for(self.recipe.bench.inventory, self.base)

    def device_facts(self, name: str) -> list[Any]:
        """What a latency there depends on besides the graph: the same name may come to mean another machine."""
        from edgedistill.devices import inventory

        device = inventory.find(inventory.load(self.inventory), name)
        place = {name: value for name, value in asdict(device).items() if name != "backends"}
        return [place, environment.machine() if device.transport == "local" else []]

    @property
    def checkpoint(self) -> Checkpoint:
        """The trained student of this run."""
        return read_record(self.run / "distill/result.json", Checkpoint)

    @property
    def exported(self) -> list[OnnxModel]:
        """fp32, and fp16 where it was asked for."""
        return list(read_record(self.run / "export/models.json", tuple[OnnxModel, ...]))

    @property
    def models(self) -> list[OnnxModel]:
        """Every graph that was made, fp32 first."""
        return [*self.exported, *read_record(self.run / "quantize/models.json", tuple[OnnxModel, ...])]

    @property
    def guarded(self) -> tuple[Guarded, ...]:
        """What the accuracy guard found, a target each; none where nothing was quantized."""
        path = self.run / "quantize/guard.json"
        return read_record(path, tuple[Guarded, ...]) if path.is_file() else ()

    @property
    def default_model(self) -> str:
        """Name of the graph that a CPU should run: what was kept for it, else fp32."""
        kept = read_record(self.run / "keep/kept.json", tuple[Kept, ...])
        return next((one.artefact for one in kept if one.target == "cpu"), self.models[0].name)

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
        found = self.shards
        return {
            "shards": len(found),
            "streamed": sum(len(one.rows) for one in found),
            "streamed_corrupt": sum(len(one.shard.corrupt) for one in found),
            "streamed_duplicates": sum(len(one.shard.kept) - len(one.rows) for one in found),
            "shards_hash": digest([one.shard.data_hash for one in found]),
        }


def spread(n: int, wanted: int) -> Any:
    """At most `wanted` of n rows, evenly spread, ascending."""
    import numpy as np

    return np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(np.int64))


def save_arrays(path: Path, **arrays: Any) -> None:
    """np.savez_compressed, atomically."""
    import numpy as np

    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
