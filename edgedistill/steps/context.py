"""What the steps of one run share, loaded on first access: images, sources, their outputs."""

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
    """The leader's order to the other processes: a key of workers.WORK, the run, and the work's arguments."""

    recipe: Recipe
    base: Path
    run: Path
    work: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """A recipe and its run directory. The recipe's paths are relative to `base`.

    In `recipe` all sources are resolved: a source given as a recipe is replaced by the run that trained it.
    """

    recipe: Recipe
    base: Path
    run: Run

    def order(self, work: str, **arguments: Any) -> None:
        """Order the other processes, if there are any, to take part in `work`, a key of workers.WORK."""
        from edgedistill.distributed import processes

        processes.send_order(
            Order(recipe=self.recipe, base=self.base, run=self.run.path, work=work, arguments=arguments)
        )

    @cached_property
    def candidates(self) -> list[StudentSpec]:
        """The candidates of the student space with their costs; the number of classes is that of the data."""
        from edgedistill.data import datasets
        from edgedistill.students import space

        return space.candidates(self.recipe.student, len(datasets.listing(self.recipe.data, self.base).classes))

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The loaded, frozen sources, in the recipe's order."""
        from edgedistill.sources import registry

        return {section.name: registry.load(section, self.base) for section in self.recipe.sources}

    @cached_property
    def splits(self) -> Splits:
        """The target's images, decoded once at the largest input size of the sources and students."""
        from edgedistill.data.splits import load_splits

        sizes = [spec.input_px for spec in self.candidates]
        sizes += [network.input_px for network in self.networks.values()]
        px = max([SMALLEST_PX, *sizes])
        return load_splits(self.recipe.data, self.base, cache=self.run.cache / "images", seed=self.recipe.seed, px=px)

    @cached_property
    def source_outputs(self) -> dict[str, SourceOutputs]:
        """Features and pseudo-labels of every source on all images of the train store, cached."""
        from edgedistill.distributed import processes
        from edgedistill.sources.outputs import compute_outputs

        store, is_leader = self.splits.train, processes.team().is_leader
        outputs_by_source = {}
        for name, network in self.networks.items():
            with bar(f"{name} on {store.n} images at {network.input_px} px", store.n) as progress:
                try:
                    outputs_by_source[name] = compute_outputs(
                        network,
                        store.resized,
                        data_hash=store.pixels_hash,
                        cache=self.run.cache / "sources",
                        progress=progress,
                        order_others=partial(self.order, "infer", name=name) if is_leader else None,
                    )
                except InputError as error:
                    raise InputError(f"sources.{name}: {error.message}", error.fix) from None
        return outputs_by_source

    @property
    def view(self) -> View:
        """How an image of a shard is converted to a square: as the images of `data` are."""
        from edgedistill.data.shards import View

        return View(px=self.splits.train.px, fit=self.recipe.data.fit)

    @cached_property
    def shards(self) -> tuple[LabeledShard, ...]:
        """The recipe's shards with every source's outputs, cached, computed one shard at a time.

        Several processes divide the shards among them. Images with the pixels of an image of `data` are excluded.
        """
        import numpy as np

        from edgedistill.data.shards import addresses, fresh_rows
        from edgedistill.distill.stream import LabeledShard
        from edgedistill.distributed import processes
        from edgedistill.sources.shard_outputs import label_shard

        if self.recipe.unlabeled is None:
            return ()
        urls = addresses(self.recipe.unlabeled, self.base)
        splits, team = self.splits, processes.team()
        label = partial(label_shard, view=self.view, networks=self.networks, cache=self.run.cache)
        if team.is_leader:
            self.order("label")
        with bar(f"label {len(urls)} shards", len(urls)) as progress:
            for url in urls[team.rank :: team.size]:
                label(url, progress=progress)
        processes.all_gather(None)  # the other processes have labeled their shards
        shards, outputs = zip(*map(label, urls), strict=True)
        data_hashes = np.concatenate([splits.train.hashes, splits.test_set.store.hashes])
        rows = fresh_rows(shards, data_hashes)
        return tuple(
            LabeledShard(shard=shard, rows=shard_rows, outputs=shard_outputs)
            for shard, shard_rows, shard_outputs in zip(shards, rows, outputs, strict=True)
        )

    @property
    def method(self) -> Method:
        """The recipe's distillation method."""
        from edgedistill.distill.methods import METHODS

        return METHODS[self.recipe.distill.method.name]

    @property
    def weights(self) -> SourceWeights:
        """The source weights that the step weigh wrote."""
        return artifacts.WEIGHTS.read(self.run)

    @cached_property
    def teacher(self) -> Teacher:
        """The mixture of the sources' probes, fitted on the labeled images: class probabilities of every train image.

        Train images with the pixels of a test image are excluded; their rows are uniform.
        """
        import numpy as np

        from edgedistill.distill.teachers import TEACHERS
        from edgedistill.recipe.options import bound_options

        choice, splits = self.recipe.distill.teacher, self.splits
        fit, classes = TEACHERS[choice.name].fit, len(splits.classes)
        split_rows = np.sort(np.concatenate([splits.labeled_rows, splits.val_rows, splits.unlabeled_rows]))
        teacher = fit(
            features={name: outputs.features_ND[split_rows] for name, outputs in self.source_outputs.items()},
            alphas=self.weights.alphas,
            rows=np.searchsorted(split_rows, splits.labeled_rows),
            labels_L=splits.labeled_labels,
            classes=classes,
            **bound_options(fit, choice.options),
        )
        probs_NC = np.full((splits.train.n, classes), 1.0 / classes, dtype=np.float32)
        probs_NC[split_rows] = teacher.probs_NC
        return replace(teacher, probs_NC=probs_NC)

    def stream(self, px: int) -> Stream | None:
        """The shards' images at a student's input size; None if the recipe names no shards."""
        if px not in self._stream_by_px:  # a stream holds images in memory: one size at a time
            self._stream_by_px.clear()
            self._stream_by_px[px] = self._new_stream(px)
        return self._stream_by_px[px]

    @cached_property
    def _stream_by_px(self) -> dict[int, Stream | None]:
        return {}

    def _new_stream(self, px: int) -> Stream | None:
        from edgedistill.distill.stream import Stream

        if self.recipe.unlabeled is None:
            return None
        options = self.recipe.distill.method.options
        return Stream(
            shards=self.shards,
            view=self.view,
            px=px,
            seed=self.recipe.seed,
            mixed=self.recipe.unlabeled.mixed,
            sources=tuple(self.method.shares(self.weights.alphas, options)),
            teacher=self.teacher.predict if "teacher" in self.method.needs else None,
        )

    def material(self, px: int, held_out: int = 0) -> Material:
        """The training material at input size `px`; `held_out` unlabeled images, at most a quarter, are held out."""
        import numpy as np

        from edgedistill.data.splits import evenly_spaced
        from edgedistill.distill.batches import Material

        splits, n_unlabeled = self.splits, len(self.splits.unlabeled_rows)
        held_out_positions = evenly_spaced(n_unlabeled, min(held_out, n_unlabeled // 4))
        return Material(
            images_NHWC=splits.train.resized(px),
            labeled=splits.labeled_rows,
            labels=splits.labeled_labels,
            unlabeled=np.delete(splits.unlabeled_rows, held_out_positions),
            val=splits.val_rows,
            val_labels=splits.val_labels,
            source_probs={name: outputs.probs_NK for name, outputs in self.source_outputs.items()},
            alphas=self.weights.alphas,
            held_out=splits.unlabeled_rows[held_out_positions],
            teacher_NC=self.teacher.probs_NC if "teacher" in self.method.needs else None,
            stream=self.stream(px),
        )

    def test_images(self, px: int) -> tuple[Any, Any]:
        """The test images at `px`, uint8 [N, px, px, 3], and their labels [N]."""
        test = self.splits.open_test()
        return test.store.resized(px), test.labels_N

    def calibration_images(self, px: int) -> Any:
        """Calibration images of train, with other pixels than those of val and test, uint8 [N, px, px, 3]."""
        rows = self.splits.calibration_rows(self.recipe.quantize.calibration_images, self.recipe.seed)
        return self.splits.train.resized(px)[rows]

    @property
    def checkpoint(self) -> Checkpoint:
        """The trained student of this run."""
        return artifacts.RESULT.read(self.run)

    @property
    def exported(self) -> list[OnnxModel]:
        """The fp32 graph, and the fp16 graph if the recipe enables it."""
        return list(artifacts.EXPORTED.read(self.run))

    @property
    def models(self) -> list[OnnxModel]:
        """All graphs, fp32 first."""
        return [*self.exported, *artifacts.QUANTIZED.read(self.run)]

    @property
    def guarded(self) -> tuple[Guarded, ...]:
        """The accuracy guard's outcome for each target; empty if nothing was quantized."""
        return artifacts.GUARD.find(self.run) or ()

    @property
    def default_graph(self) -> str:
        """Name of the graph for CPUs: the graph chosen by the step keep, else fp32."""
        kept = artifacts.KEPT.read(self.run)
        return next((entry.artefact for entry in kept if entry.target == "cpu"), self.models[0].name)

    @property
    def inventory(self) -> Path | None:
        """The recipe's device inventory, else deploy/devices.yaml in the current folder, if it exists."""
        from edgedistill.devices.inventory import path_for

        return path_for(self.recipe.bench.inventory, self.base)

    def device_facts(self, name: str) -> list[Any]:
        """What a latency on a device depends on besides the graph: one name may refer to another machine later."""
        from edgedistill.devices import inventory as devices

        device = devices.find(devices.load(self.inventory), name)
        settings = {key: setting for key, setting in asdict(device).items() if key != "backends"}
        return [settings, environment.machine() if device.transport == "local" else []]

    def data_facts(self) -> dict[str, Any]:
        """The facts about the data for the report, and the hashes of the images used."""
        splits, section = self.splits, self.recipe.data
        counts = {"labeled": splits.labeled_rows, "val": splits.val_rows, "unlabeled": splits.unlabeled_rows}
        return {
            "kind": section.kind,
            "classes": list(splits.classes),
            "licence": splits.licence,
            "score": section.score,
            **{name: len(rows) for name, rows in counts.items()},
            "test": splits.n_test,
            "corrupt": list(splits.corrupt),
            "duplicates": splits.duplicates,
            "data_hash": splits.data_hash,
            "test_hash": digest([splits.test_set.store.hashes.tolist(), splits.test_set.labels_N.tolist()]),
            "store_px": splits.train.px,
            **self.shard_facts(),
        }

    def shard_facts(self) -> dict[str, Any]:
        """Numbers of images in shards, used and excluded, and the hash of all of them."""
        if self.recipe.unlabeled is None:
            return {}
        return {
            "shards": len(self.shards),
            "streamed": sum(len(labeled.rows) for labeled in self.shards),
            "streamed_corrupt": sum(len(labeled.shard.corrupt) for labeled in self.shards),
            "streamed_duplicates": sum(
                len(labeled.shard.sample_numbers) - len(labeled.rows) for labeled in self.shards
            ),
            "shards_hash": digest([labeled.shard.data_hash for labeled in self.shards]),
        }
