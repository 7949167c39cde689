"""The builder: tensorrt-rtx makes an engine of an ONNX graph ahead of time, without a GPU, in a process of its own.

It is native code, which may end the process that called it, and it says what it does on stdout, in pages. So `python -m
edgedistill.export.rtx_builder GRAPH ENGINE sm89` runs it; engines.py starts that, and reads what was said.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

PACKAGE = "tensorrt-rtx"
BATCH = 1
NOTHING = "the builder gives no engine"


def version() -> str:
    """The installed builder, such as `tensorrt-rtx 1.7.1`, found without loading it; "" where there is none."""
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        return ""


def build(graph: Path, engine: Path, capability: str) -> str:
    """Write the engine of a graph for a compute capability, for batches of one; logs to stdout.

    Args:
        graph: ONNX with one input, whose first axis is the batch. The types in it are the engine's (strongly typed).
        engine: the file to write.
        capability: as a recipe names it, "sm89".

    Returns:
        "", or what the parser has against the graph, or that the builder gave nothing (its log says why).
    """
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.VERBOSE)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.read_bytes()):
        return "; ".join(str(parser.get_error(at)) for at in range(parser.num_errors)) or "the parser refuses it"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability.upper()), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the log has layers without types
    images, profile = network.get_input(0), builder.create_optimization_profile()
    shape = (BATCH, *tuple(images.shape)[1:])
    profile.set_shape(images.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        return NOTHING
    engine.write_bytes(built)
    return ""


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]) or 0)
