"""The story: which steps, in which order, reading what, leaving what. The only file that knows more than one stage.

    recipe -> weigh -> search -> distill -> export -> quantize -> keep -> engines -> verify -> bundle -> bench -> report

A step is a function of the context that leaves files in the run directory. Whether it must run at all is decided by
its key (run.py) before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import get_args

from edgedistill import crew, inputs, qat, rehearsal, report, report_weights, run
from edgedistill.context import Context, save_arrays, spread
from edgedistill.devices import inventory
from edgedistill.devices.bundle import target_of
from edgedistill.progress import bar, say, watch
from edgedistill.records import (
    Accuracy,
    Checkpoint,
    EdgeDistillError,
    GateError,
    OnnxModel,
    Precision,
    SourceWeights,
    StudentSpec,
    TeacherScore,
)
from edgedistill.steps import Step

FIRST_BATCH = 64  # images on which the fp32 graph is held against torch at export; verify does it on all of test
UNTIMED = "its speed is measured on the device, by edgedistill bench --backend tensorrt"


def weigh(context: Context) -> None:
    """How similar is each source to the target? Score them on the labeled images, and weigh them."""
    import numpy as np

    from edgedistill.training import similarity

    splits, names = context.splits, [section.name for section in context.recipe.sources]
    run.write_json(context.run / "data.json", context.data_facts())
    nets = context.networks.items()
    run.write_json(context.run / "weigh/sources.json", {name: net.facts() for name, net in nets})
    weights = SourceWeights(metric="none", probe_images=0, power=0.0, sources=())
    if names:
        settings = context.recipe.weigh
        # all labeled images, val among them: a score from few labels is noise enough
        rows = np.concatenate([splits.labeled_rows, splits.val_rows])
        labels_N = np.concatenate([splits.labeled_labels, splits.val_labels])
        probe = {name: (one.features_ND[rows], one.probs_NK[rows]) for name, one in context.outputs.items()}
        rounds = len(names) * len({settings.metric.name, *(choice.name for choice in settings.also)})
        with bar("score the sources", rounds) as shown:
            weights = similarity.weigh(probe, labels_N, settings=settings, seed=context.recipe.seed, progress=shown)
        say(report_weights.table(weights))
    run.write_record(context.run / "weigh/weights.json", weights)


def choose(context: Context) -> None:
    """Which student? The best within the budget after a short distillation, scored on val."""
    from edgedistill.training import search

    recipe, folder = context.recipe, context.run / "search"
    winner = search.search(
        context.candidates,
        recipe.student.budget,
        recipe.search,
        partial(rehearsal.score, context),
        seed=recipe.seed,
        folder=folder,
        latency=partial(rehearsal.latency_ms, context),
        name=recipe.name,
        identity=rehearsal.identity(context),
    )
    run.write_record(folder / "student.json", winner)
    say(f"  {search.why(winner, folder)}")


def distill(context: Context) -> None:
    """Train the chosen student at full length, then look at test: once, here."""
    from safetensors.torch import save

    from edgedistill.training import fit

    recipe, folder, steps = context.recipe, context.run / "distill", context.recipe.distill.steps
    spec = run.read_record(context.run / "search/student.json", StudentSpec)
    with watch(context.run / "tensorboard", steps) as on_step:
        fitted = crew.distil(context, spec, steps, recipe.seed, folder=folder, on_step=on_step)
    weights = folder / "student.safetensors"
    with run.atomic(weights) as temporary:
        temporary.write_bytes(save({name: one.contiguous().cpu() for name, one in fitted.model.state_dict().items()}))
    images_NHWC, labels_N = context.test_images(spec.input_px)
    test = fit.score(fit.logits(fitted.model, spec, images_NHWC), labels_N)
    record = Checkpoint(
        path="distill/student.safetensors",
        sha256=run.sha256_file(weights),
        spec=spec,
        classes=context.splits.classes,
        val=fitted.val,
        test=test,
        method=recipe.distill.method.name,
        steps=steps,
        train_seconds=round(fitted.seconds, 3),
        teacher=taught(context, fitted.val),
    )
    brief = {"top1": test.top1, "n_test": test.n, "ci95": test.top1_ci95}
    run.write_json(folder / "result.json", {**asdict(record), **brief})


def taught(context: Context, student: Accuracy) -> TeacherScore | None:
    """The teacher, where the method has one: it is the student's ceiling, and one below the student is worth a word."""
    from edgedistill.training import fit
    from edgedistill.training.methods import NEEDS

    distill, splits = context.recipe.distill, context.splits
    if "teacher" not in NEEDS[distill.method.name]:
        return None
    val = fit.score(context.teacher.probs_NC[splits.val_rows], splits.val_labels)
    say(f"  teacher: {val.balanced:.1%} balanced accuracy on val, the student {student.balanced:.1%}")
    if val.balanced < student.balanced_ci95[0]:
        say("  the student is better than its teacher: add sources that know more, or choose transfer")
    return TeacherScore(kind=distill.teacher.name, val=val, weights=context.teacher.weights)


def export(context: Context) -> None:
    """torch to ONNX, preprocessing inside; the graph must answer as torch does."""
    from edgedistill.export import onnx
    from edgedistill.training import student

    record = context.checkpoint
    images_NHWC = context.calibration_images(record.spec.input_px)[:FIRST_BATCH]
    model = student.load(record.spec, context.run / record.path)
    path = context.run / "export/student.fp32.onnx"
    made = onnx.export(model, record.spec, path=path, images_NHWC=images_NHWC, settings=context.recipe.export)
    graphs = [replace(made, path=f"export/{path.name}", parent_sha256=record.sha256)]
    if context.recipe.export.fp16 and (half := onnx.half(path, graphs[0], images_NHWC)):
        graphs.append(replace(half, path=f"export/{half.path}"))
    run.write_json(context.run / "export/models.json", [asdict(one) for one in graphs])


def quantize(context: Context) -> None:
    """One calibration on images of train, one int8 graph a target, each held to its bound on val."""
    import numpy as np

    from edgedistill.export import quantize

    made: list[OnnxModel] = []
    if context.recipe.quantize.enabled:
        splits, px, fp32 = context.splits, context.checkpoint.spec.input_px, context.exported[0]
        val = np.asarray(splits.train.at(px)[splits.val_rows]), splits.val_labels
        made = quantize.quantize(
            context.run / fp32.path,
            fp32,
            images_NHWC=context.calibration_images(px),
            settings=context.recipe.quantize,
            folder=context.run / "quantize",
            val=val,
            score=context.recipe.data.score,
            tune=qat.tuner(context),
            half=len(context.exported) > 1,
        )
    run.write_json(
        context.run / "quantize/models.json", [asdict(replace(one, path=f"quantize/{one.path}")) for one in made]
    )


def keep(context: Context) -> None:
    """Which precision each target gets: int8 against the higher one, timed in turn where this machine can run them."""
    from edgedistill import keep

    kept, asked, models = [], context.recipe.quantize, context.models
    guarded = {one.target: one for one in context.guarded}
    for target in asked.targets if asked.enabled else ():
        said, ratio, untimed, backend = guarded.get(target), None, UNTIMED, keep.BACKENDS[target]
        if backend in rehearsal.runtimes() and (said is None or said.holds):
            pair = [keep.fallback(target, models), next(one for one in models if one.target == target)]
            ratio, untimed = _timed(context, pair, backend)
        kept.append(
            keep.keep(target, models, guarded=said, min_speedup=asked.min_speedup, ratio=ratio, untimed=untimed)
        )
        say(f"  {target}: {kept[-1].artefact}: {kept[-1].why}")
    run.write_json(context.run / "keep/kept.json", [asdict(one) for one in kept])


def _timed(context: Context, pair: list[OnnxModel], backend: str) -> tuple[tuple[float, float, float] | None, str]:
    """The ratio, or why there is none: a GPU that is there may still be too full, or too old for the graph."""
    try:
        return rehearsal.ratio(context, pair, backend), ""
    except EdgeDistillError as error:
        if backend == "onnxruntime-cpu":
            raise
        return None, f"its speed could not be measured here: {error.message}"


def engines(context: Context) -> None:
    """Does TensorRT's parser take the graphs, and what becomes of them? Engines ahead of time, where a builder is."""
    from edgedistill.export import engines

    folder = context.run / "engines"
    made = engines.write(context.models, context.run.path, folder, context.recipe.export.engines)
    for one in made:
        if one.failed:
            say(f"  {one.artefact} for {one.capability} does not build: {one.failed}")
    if not made:
        say(f"  none: {run.read_json(folder / 'none.json')['why']}")


def verify(context: Context) -> None:
    """The ladder: the same test images through torch and every graph; agreement, accuracy, gates."""
    import numpy as np

    from edgedistill.export import verify
    from edgedistill.training import fit, student

    record = context.checkpoint
    images_NHWC, labels_N = context.test_images(record.spec.input_px)
    torch_NC = fit.logits(student.load(record.spec, context.run / record.path), record.spec, images_NHWC)
    found, logits = verify.ladder(
        torch_NC,
        context.models,
        run=context.run.path,
        images_NHWC=images_NHWC,
        labels_N=labels_N,
        settings=context.recipe.export,
    )
    run.write_record(context.run / "verify/ladder.json", found)
    best_NC = logits[context.default_model]
    save_arrays(context.run / "verify/mistakes.npz", **verify.mistakes(images_NHWC, labels_N, best_NC))
    parted = np.array(found.worst, dtype=np.int64)
    which = verify.furthest(torch_NC[parted], {name: one[parted] for name, one in logits.items() if "int8" in name})
    said = np.array([logits[name][row].argmax() for name, row in zip(which, parted, strict=True)], dtype=np.int64)
    save_arrays(
        context.run / "verify/disagreements.npz",
        images=images_NHWC[parted],
        labels=labels_N[parted],
        torch=torch_NC[parted].argmax(axis=1),
        int8=said,
        artefact=np.array(which, dtype=str),
    )
    save_arrays(context.run / "verify/predictions.npz", **{name: one.argmax(axis=1) for name, one in logits.items()})
    failed = [gate for gate in found.gates if not gate.passed]
    if failed:
        what = ", ".join(f"{gate.name} is {gate.value:.6g} (wanted {gate.bound})" for gate in failed)
        raise GateError(f"verify: {what}", f"see {context.run / 'verify/ladder.json'}")


def bundle(context: Context) -> None:
    """What a device needs, and nothing else."""
    import numpy as np

    from edgedistill.devices import bundle

    record, store_px = context.checkpoint, context.splits.train.px
    images_NHWC, labels_N = context.test_images(record.spec.input_px)
    with np.load(context.run / "verify/predictions.npz") as known:
        chosen = spread(len(labels_N), inputs.shipped_images(context))
        host = {bundle.model_name(model): known[bundle.model_name(model)][chosen] for model in context.models}
    description = {
        "name": context.recipe.name,
        "classes": list(record.classes),
        "input_px": record.spec.input_px,
        "store_px": store_px,
        "fit": context.recipe.data.fit,
        "default": context.default_model,
        "licence": context.splits.licence,
    }
    shipped = [(context.run / model.path, model) for model in context.models]
    bundle.write_bundle(
        context.run / "bundle",
        shipped,
        description=description,
        images_NHWC=images_NHWC[chosen],
        labels_N=labels_N[chosen],
        host_predictions=host,
    )


def measure(context: Context, device_name: str, backend: str) -> None:
    """Latency and accuracy on a device, by the agent, in fresh processes."""
    from edgedistill.devices import bench

    device = inventory.find(inventory.load(context.inventory), device_name)
    shipped = [model for model in context.models if model.target in {"any", target_of(backend)}]
    bench.bench(
        context.run / "bundle",
        device,
        backend=backend,
        settings=context.recipe.bench,
        models=shipped,
        out=context.run / "bench",
    )


def write_report(context: Context) -> None:
    """report.json and report.html."""
    report.write(context.run)


TRAIN = (
    Step(
        name="weigh",
        version=1,
        sections=("seed", "data", "unlabeled", "sources", "weigh"),
        after=(),
        outputs=("data.json", "weigh/*.json"),
        work=weigh,
        extra=inputs.external,
    ),
    Step(
        name="search",
        version=rehearsal.SEARCH,
        sections=("seed", "data", "unlabeled", "student", "search", "distill"),
        after=("weigh",),
        outputs=("search/student.json", "search/trials.csv"),
        work=choose,
        scratch=("search/study.journal*",),
        extra=inputs.initial_weights,
    ),
    Step(
        name="distill",
        version=1,
        sections=("seed", "data", "unlabeled", "distill"),
        after=("weigh", "search"),
        outputs=("distill/student.safetensors", "distill/result.json", "distill/metrics.jsonl"),
        work=distill,
        scratch=("distill/last.pt", "tensorboard/*"),
    ),
)
EXPORT = (
    Step(
        name="export",
        version=2,
        sections=(),
        after=("distill",),
        outputs=("export/*",),
        work=export,
        extra=inputs.how_exported,
    ),
    Step(
        name="quantize",
        version=2,
        sections=(),
        after=("distill", "export"),
        outputs=("quantize/*",),
        work=quantize,
        scratch=("qat/*/*.*", "qat/*/tensorboard/*"),
        extra=inputs.how_quantized,
    ),
    Step(
        name="keep",
        version=1,
        sections=("quantize",),
        after=("export", "quantize"),
        outputs=("keep/*",),
        work=keep,
        extra=inputs.this_machine,
    ),
    Step(
        name="engines",
        version=1,
        sections=(),
        after=("export", "quantize"),
        outputs=("engines/*",),
        work=engines,
        extra=inputs.builder,
    ),
    Step(
        name="verify",
        version=2,
        sections=(),
        after=("distill", "export", "quantize", "keep"),
        outputs=("verify/*",),
        work=verify,
        extra=inputs.how_exported,
    ),
    Step(
        name="bundle",
        version=2,
        sections=(),
        after=("distill", "export", "quantize", "keep", "verify"),
        outputs=("bundle/*",),
        work=bundle,
        extra=inputs.what_is_shipped,
    ),
)


def _records(device: str, backend: str) -> tuple[str, ...]:
    """The files of one backend alone: another's name may begin with this one's."""
    return tuple(f"bench/{device}/{backend}-{precision}*.json" for precision in get_args(Precision))


def bench_steps(context: Context) -> tuple[Step, ...]:
    """A step per device and backend, so that measuring another device leaves the first one's measurement alone."""
    bench = context.recipe.bench
    settings = run.digest(bench.model_dump(exclude={"devices", "backends", "inventory"}))

    def inputs(device: str, context: Context) -> dict[str, str]:
        return {"settings": settings, "device": run.digest(context.device_facts(device))}

    known = inventory.load(context.inventory)
    return tuple(
        Step(
            name=f"bench-{device}-{backend}",
            version=2,
            sections=(),
            after=("bundle",),
            outputs=_records(device, backend),
            work=partial(measure, device_name=device, backend=backend),
            extra=partial(inputs, device),
        )
        for device in dict.fromkeys(bench.devices)
        for backend in inventory.wanted_backends(inventory.find(known, device), tuple(dict.fromkeys(bench.backends)))
    )


def report_step(context: Context) -> Step:
    """The report reads whatever was done in this run directory."""
    done = tuple(step for step in context.run.manifest()["steps"] if step != "report")
    return Step(
        name="report",
        version=1,
        sections=("name", "about", "data"),
        after=done,
        outputs=("report.json", "report.html"),
        work=write_report,
    )


def nothing(context: Context) -> tuple[Step, ...]:
    """No step after training."""
    return ()


def to_bundle(context: Context) -> tuple[Step, ...]:
    """From the trained student to the bundle."""
    return EXPORT


def to_the_end(context: Context) -> tuple[Step, ...]:
    """From the trained student to the last measurement."""
    return (*EXPORT, *bench_steps(context))
