"""Graphs of every family that the search offers, and of ten more nets of timm: which of them can be made and built.

    python -m benchmarks.families [--names micro lcnet]

Each net is untrained, its batch norms have statistics of activations, and its input is small. It is exported to fp32
(parity with torch), fp16 and both int8 graphs, as the pipeline does. ONNX Runtime runs each; tensorrt-rtx builds an
engine of those for TensorRT; OpenVINO runs the fp32 graph, also in its 16-bit float, and the int8 graph for CPUs; ncnn
runs what pnnx converts. What is not installed has no entry. A net is a process of its own: engines are native code, and
a crash is a result. A line is one net. A net with a line is not done again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.lines import append, read, run_program
from edgedistill.agent import backends, metrics
from edgedistill.agent.job import AgentError
from edgedistill.console import say
from edgedistill.errors import EdgeDistillError
from edgedistill.export import engines, ncnn, quantize, rtx_builder
from edgedistill.export import onnx as exporter
from edgedistill.export.infer import predict_onnx
from edgedistill.recipe.schema import Export, Quantize
from edgedistill.records import Cost, OnnxModel, StudentSpec
from edgedistill.students.families import FAMILIES

KIND, CLASSES, CAPABILITY, IMAGES = "families", 5, "sm89", 16
OPENVINO = {"openvino": ("fp32", "int8-cpu"), "openvino-reduced": ("fp32",)}  # int8 is the same with either hint
NONE = {"weights": "none"}
NETS: Mapping[str, tuple[str, dict[str, Any], int]] = {
    "micro": ("micro", {"width": 8}, 32),
    "efficientnet_lite": ("efficientnet_lite", {"variant": 0, **NONE}, 64),
    "mobilenetv2": ("mobilenetv2", {"width": "050", **NONE}, 64),
    "mobilenetv3": ("mobilenetv3", {"size": "small_050", **NONE}, 64),
    "mobilenetv4": ("mobilenetv4", {"size": "conv_small_050", **NONE}, 64),
    "resnet": ("resnet", {"depth": "10t", **NONE}, 64),
    "regnet": ("regnet", {"kind": "y", **NONE}, 64),
    "mobileone": ("mobileone", NONE, 64),
    "repvgg": ("repvgg", NONE, 64),
    "lcnet": ("lcnet", NONE, 64),
    "tinynet": ("tinynet", {"size": "e", **NONE}, 64),
    "mnasnet": ("mnasnet", {"size": "small", **NONE}, 64),
    "ghostnet": ("ghostnet", NONE, 64),
    **{
        model: ("timm", {"model": model, **NONE}, px)
        for model, px in (
            ("convnextv2_atto", 64),
            ("convnext_atto", 64),
            ("fastvit_t8", 64),
            ("mobilevit_xxs", 64),
            ("mobilenetv4_hybrid_medium", 64),
            ("repvit_m0_9", 64),
            ("edgenext_xx_small", 64),
            ("efficientvit_b0", 64),
            ("poolformer_s12", 64),
            ("mixer_s32_224", 224),
            ("vit_tiny_patch16_224", 224),
            ("efficientformerv2_s0", 224),
        )
    },
}


def pictures(n: int, px: int) -> np.ndarray:
    """Patches of color under grain, uint8 [n, px, px, 3]."""
    generator = np.random.default_rng(0)
    patches = generator.normal(128, 50, (n, px // 8, px // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(patches + generator.normal(0, 15, patches.shape), 0, 255).astype(np.uint8)


def student(family: str, options: Mapping[str, Any], images_NHWC: np.ndarray) -> nn.Module:
    """An untrained net with a head, whose batch norms have the statistics of the images."""
    torch.manual_seed(3)
    backbone = FAMILIES[family](**options).build()
    images = torch.from_numpy(images_NHWC.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        backbone.train()(images)
        width = backbone.eval()(images[:1]).shape[1]
    return nn.Sequential(backbone, nn.Linear(width, CLASSES)).eval()


def other_engines(folder: Path, models: Sequence[OnnxModel], images_NHWC: np.ndarray) -> dict[str, Any]:
    """{"openvino fp32": the share of the pictures with ONNX Runtime's label for that graph, or why there is none}."""
    versions = backends.available()
    shares: dict[str, Any] = {}
    by_name = {model.name: folder / model.path for model in models}
    for backend, graphs in OPENVINO.items():
        if not versions[backend][0].isdigit():
            continue
        for graph in (graph for graph in graphs if graph in by_name):
            engine = backends.create(backend)
            try:
                engine.build(by_name[graph], threads=1, batch=len(images_NHWC))
                labels_N = engine.infer(images_NHWC).argmax(1)
                shares[f"{backend} {graph}"] = metrics.agreement(
                    predict_onnx(by_name[graph], images_NHWC).argmax(1), labels_N
                )
            except AgentError as error:
                shares[f"{backend} {graph}"] = str(error)
            engine.close()
    if ncnn.version():
        try:
            parity = ncnn.convert(
                by_name["fp32"],
                models[0],
                images_NHWC=images_NHWC,
                folder=folder,
                settings=Export(min_agreement=0.9),
            ).parity
            shares |= {
                key.removesuffix(" agreement"): share for key, share in parity.items() if key.endswith("agreement")
            }
        except EdgeDistillError as error:
            shares["ncnn"] = error.message
    return shares


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One net's line: for each graph the agreement with fp32 and whether it builds; "failed" says what ended it."""
    family, options, px = NETS[name]
    line: dict[str, Any] = {"name": name, "px": px, "graphs": {}, "builder": rtx_builder.version(), "failed": ""}
    started, images_NHWC, path = time.monotonic(), pictures(IMAGES, px), folder / "student.fp32.onnx"
    cost = Cost(macs_m=0.0, params_m=0.0, weights_mb=0.0)
    half = (0.5, 0.5, 0.5)
    spec = StudentSpec(
        family=family, options=dict(options), input_px=px, num_classes=CLASSES, cost=cost, mean=half, std=half
    )
    try:
        net = student(family, options, images_NHWC)
        fp32 = exporter.export(net, spec, path=path, images_NHWC=images_NHWC, settings=Export(min_agreement=0.9))
        models = [fp32]
        fp16 = exporter.half(path, fp32, images_NHWC)
        models += [fp16] if fp16 else []
        settings = Quantize(method="minmax", calibration_images=IMAGES)
        models += quantize.quantize(path, fp32, images_NHWC=images_NHWC, settings=settings, folder=folder)
        expected_NC = predict_onnx(path, images_NHWC)
        for model in models:
            logits_NC = predict_onnx(folder / model.path, images_NHWC, simulate=model.target == "tensorrt")
            entry: dict[str, Any] = {
                "agreement": metrics.agreement(expected_NC.argmax(1), logits_NC.argmax(1)),
                "noise": quantize.closeness(expected_NC, logits_NC)["noise"],
            }
            if model.target != "cpu" and line["builder"]:
                failed, _ = engines.run_builder(folder / model.path, folder / "engine", CAPABILITY, 600.0)
                entry["build"] = failed or "builds"
            line["graphs"][model.name] = entry
        line["parity"] = fp32.parity
        line["engines"] = other_engines(folder, models, images_NHWC)
    except Exception as error:  # what ends a net is its result
        line["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return {**line, "seconds": round(time.monotonic() - started, 1)}


def table() -> str:
    """The table of docs/int8.md: the label agreement of each graph with fp32, and what the engines say."""
    newest = {line["name"]: line for line in read(KIND)}
    rows = [
        "| net | px | relative error of fp32 | fp16 | int8-cpu | int8-tensorrt | tensorrt-rtx | OpenVINO | ncnn |",
        "|" + " --- |" * 9,
    ]
    for name in (name for name in NETS if name in newest):
        line = newest[name]
        if line["failed"]:
            rows.append(f"| {name} | {line['px']} | {line['failed']} | | | | | | |")
            continue
        graphs = line["graphs"]
        shares = [
            f"{graphs[graph]['agreement']:.0%}, {graphs[graph]['noise']:.2f}" if graph in graphs else "none"
            for graph in ("fp16", "int8-cpu", "int8-tensorrt")
        ]
        built = [graph for graph, entry in graphs.items() if entry.get("build") == "builds"]
        tried = [graph for graph, entry in graphs.items() if "build" in entry]
        failed = [f"{graph}: {graphs[graph]['build'][:80]}" for graph in tried if graph not in built]
        engine = "; ".join(failed) or (f"{len(built)} of {len(tried)}" if tried else "-")
        others = " | ".join(_answers(line.get("engines", {}), engine) for engine in ("openvino", "ncnn"))
        error = f"{line['parity']['relative_error']:.0e}"
        rows.append(f"| {name} | {line['px']} | {error} | {' | '.join(shares)} | {engine} | {others} |")
    return "\n".join(rows)


def _answers(shares: Mapping[str, Any], engine: str) -> str:
    """The shares of one engine's entries, or its first reason."""
    entries = [share for key, share in shares.items() if key.startswith(engine)]
    reasons = [entry.partition(";")[0][:80] for entry in entries if isinstance(entry, str)]
    return reasons[0] if reasons else ", ".join(f"{share:.0%}" for share in entries) or "-"


def in_own_process(name: str) -> dict[str, Any]:
    """The line of `measure`, or one that says that the process died."""
    with (
        tempfile.TemporaryDirectory(prefix="edgedistill-") as folder,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        try:
            return pool.submit(measure, name, Path(folder)).result()
        except BrokenProcessPool:
            return {"name": name, "px": NETS[name][2], "graphs": {}, "failed": "the process died"}


def main() -> int:
    """Measure every net that has no line, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", choices=list(NETS))
    # lines from before other engines ran the graphs have no "engines"
    names, done = (
        parser.parse_args().names,
        {line["name"] for line in read(KIND) if line["failed"] or "engines" in line},
    )
    for name in names or [name for name in NETS if name not in done]:
        line = in_own_process(name)
        append(KIND, line)
        say(f"{name}: {line['failed'] or line['engines']}")
    return 0


if __name__ == "__main__":
    run_program(main)
