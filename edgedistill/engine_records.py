"""What is known of an engine that was built ahead of time: engines/<artefact>.<capability>.json (export/engines.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineLayers:
    """What a builder's log says of an engine's layers.

    `types` counts them by precision. `weighted` is the precision of every ONNX node with weights, by name. Of the
    graph's `pairs`, its Q and DQ nodes of activations, `unfused` have a kernel to themselves, and the log does not
    speak of those in `unknown`.
    """

    total: int
    types: dict[str, int]
    weighted: dict[str, str]
    pairs: int
    unfused: tuple[str, ...]
    unknown: tuple[str, ...]

    def share(self, precision: str) -> float:
        """The share of the layers in a precision."""
        return self.types.get(precision, 0) / self.total


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine built ahead of time of one graph for one compute capability ("sm89"), for batches of `batch` alone.

    `path` is the file beside this record; where there is none, `failed` says why. `seconds` are the whole builder's.
    `layers` is None where its log lists none.
    """

    artefact: str
    onnx_sha256: str
    capability: str
    builder: str
    batch: int
    seconds: float
    path: str = ""
    sha256: str = ""
    size_mb: float = 0.0
    layers: EngineLayers | None = None
    failed: str = ""
