"""Engines built ahead of time from the graphs: a table row per graph and compute capability."""

from __future__ import annotations

from collections import Counter

from edgedistill.errors import first_names
from edgedistill.measurements import Engine
from edgedistill.report.blocks import Block, Row, not_run, number
from edgedistill.report.facts import Facts

HEADER = ("graph", "GPU", "MB", "layers", "int8", "fp16", "fp32", "weighted in int8", "Q/DQ unfused", "build s")
SCOPE_NOTE = (
    "a check that a graph parses, types and builds; no evidence of what TensorRT fuses on a device, nor of its speed: "
    "a device builds its engine from the same ONNX file, and edgedistill bench measures it"
)
COLUMN_NOTE = (
    "layers by the type that they multiply in, else by their widest type; weighted: convolutions and matrix "
    "products; unfused: of the Q and DQ of activations, those with a kernel to themselves (the others share one with "
    "other operators)"
)
MAX_NAMES = 4  # of nodes listed in a line


def blocks(facts: Facts) -> list[Block]:
    """One block: the engines, or the reason why there are none."""
    if facts.engines:
        parsed = [engine for engine in facts.engines if engine.layers]
        note = f"{facts.engines[0].builder}, without a GPU; batches of {facts.engines[0].batch} alone"
        rows = tuple(_row(engine) for engine in facts.engines)
        return [
            Block(
                key="engines",
                title="Engines",
                note=note,
                header=HEADER,
                rows=rows,
                lines=(SCOPE_NOTE, *([COLUMN_NOTE] if parsed else []), *_layer_lines(facts)),
            )
        ]
    return [Block(key="engines", title="Engines", lines=(facts.no_engines or not_run("export"),))]


def _row(engine: Engine) -> Row:
    if engine.failed:
        return (engine.artefact, engine.capability, "none", *["-"] * (len(HEADER) - 4), number(engine.seconds))
    layers = engine.layers
    if layers is None:
        return (engine.artefact, engine.capability, number(engine.size_mb), *["unknown"] * 6, number(engine.seconds))
    shares = tuple(f"{100 * layers.share(name):.0f} %" for name in ("int8", "fp16", "fp32"))
    types = Counter(layers.weighted.values())
    unfused = f"{len(layers.unfused)} of {layers.pairs}" if layers.pairs else "-"
    return (
        engine.artefact,
        engine.capability,
        number(engine.size_mb),
        str(layers.total),
        *shares,
        f"{types['int8']} of {len(layers.weighted)}",
        unfused,
        number(engine.seconds),
    )


def _layer_lines(facts: Facts) -> list[str]:
    """Findings that do not fit the table, each once, with its compute capabilities unless all share it."""
    capabilities_by_line: dict[str, list[str]] = {}
    for engine in facts.engines:
        for finding in _findings(engine):
            capabilities_by_line.setdefault(f"{engine.artefact}: {finding}", []).append(engine.capability)
    all_capabilities = {engine.capability for engine in facts.engines}
    return [
        line if set(capabilities) == all_capabilities else f"{line} ({', '.join(capabilities)})"
        for line, capabilities in capabilities_by_line.items()
    ]


def _findings(engine: Engine) -> list[str]:
    layers = engine.layers
    if engine.failed:
        return [f"does not build: {engine.failed}"]
    if layers is None:
        return ["the builder's log lists no layers"]
    quantized = "int8" in layers.weighted.values() or layers.pairs
    floats = [name for name, precision in layers.weighted.items() if precision != "int8"] if quantized else []
    nodes = {
        "weighted, not in int8": floats,
        "unfused": layers.unfused,
        "Q/DQ not in the log": layers.unknown,
    }
    return [f"{title}: {first_names(names, MAX_NAMES)}" for title, names in nodes.items() if names]
