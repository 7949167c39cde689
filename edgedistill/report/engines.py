"""What an ahead-of-time builder made of the graphs: a row per graph and compute capability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgedistill.records import Engine
from edgedistill.report.blocks import Block, Row, not_run, number
from edgedistill.report.facts import Facts

HEADER = ("graph", "GPU", "MB", "layers", "int8", "fp16", "fp32", "weighted in int8", "Q/DQ unfused", "build s")
MEANS = (
    "a check that a graph parses, types and builds; no evidence of what TensorRT fuses on a device, nor of its speed: "
    "there the engine is built from the same ONNX file, and edgedistill bench measures it"
)
READ = (
    "layers by the type that they multiply, else by the widest that they touch; weighted: convolutions and matrix "
    "products; unfused: of the Q and DQ of activations, those with a kernel to themselves (the others share one with "
    "other operators)"
)
NAMED = 4  # nodes that a line names at most


def blocks(facts: Facts) -> list[Block]:
    """One block: the engines, or why there are none."""
    if facts.engines:
        built = [one for one in facts.engines if one.layers]
        note = f"{facts.engines[0].builder}, without a GPU; batches of {facts.engines[0].batch} alone"
        rows = tuple(_row(one) for one in facts.engines)
        return [
            Block(
                key="engines",
                title="Engines",
                note=note,
                header=HEADER,
                rows=rows,
                lines=(MEANS, *([READ] if built else []), *_lines(facts)),
            )
        ]
    return [Block(key="engines", title="Engines", lines=(facts.no_engines or not_run("export"),))]


def _row(one: Engine) -> Row:
    if one.failed:
        return (one.artefact, one.capability, "none", *["-"] * (len(HEADER) - 4), number(one.seconds))
    known = one.layers
    if known is None:
        return (one.artefact, one.capability, number(one.size_mb), *["unknown"] * 6, number(one.seconds))
    shares = tuple(f"{100 * known.share(name):.0f} %" for name in ("int8", "fp16", "fp32"))
    types = Counter(known.weighted.values())
    unfused = f"{len(known.unfused)} of {known.pairs}" if known.pairs else "-"
    return (
        one.artefact,
        one.capability,
        number(one.size_mb),
        str(known.total),
        *shares,
        f"{types['int8']} of {len(known.weighted)}",
        unfused,
        number(one.seconds),
    )


def _lines(facts: Facts) -> list[str]:
    """What a table cannot hold, for the int8 graphs, once for all capabilities that say the same."""
    found: dict[str, list[str]] = {}
    for one in facts.engines:
        for text in _said(one):
            found.setdefault(f"{one.artefact}: {text}", []).append(one.capability)
    everywhere = {one.capability for one in facts.engines}
    return [text if set(where) == everywhere else f"{text} ({', '.join(where)})" for text, where in found.items()]


def _said(one: Engine) -> list[str]:
    known = one.layers
    if one.failed:
        return [f"does not build: {one.failed}"]
    if known is None:
        return ["the builder's log lists no layers"]
    quantized = "int8" in known.weighted.values() or known.pairs
    floats = [name for name, precision in known.weighted.items() if precision != "int8"] if quantized else []
    said = {
        "weighted, not in int8": floats,
        "unfused": known.unfused,
        "Q/DQ that the log does not speak of": known.unknown,
    }
    return [f"{what}: {_some(names)}" for what, names in said.items() if names]


def _some(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
