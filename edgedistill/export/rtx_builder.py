"""The builder: tensorrt-rtx builds an engine from an ONNX graph ahead of time, without a GPU, in its own process.

It is native code, which may crash the calling process, and it writes a long log to stdout. So engines.py starts it as
`python -m edgedistill.export.rtx_builder GRAPH ENGINE sm89`, and reads the log.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

PACKAGE = "tensorrt-rtx"
BATCH = 1
NO_ENGINE = "the builder gives no engine"


def version() -> str:
    """The installed builder, such as `tensorrt-rtx 1.7.1`, without importing it; "" if there is none."""
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        return ""


def build(graph: Path, engine: Path, capability: str) -> str:
    """Build and write the engine of a graph for a compute capability, for batches of one; logs to stdout.

    Args:
        graph: ONNX with one input, whose first axis is the batch. Its types are the engine's (strongly typed).
        engine: the file to write.
        capability: as in a recipe, "sm89".

    Returns:
        "", or the parser's errors, or NO_ENGINE (the log has the reason).
    """
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.VERBOSE)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.read_bytes()):
        return "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors)) or "the parser refuses it"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability.upper()), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # otherwise the log lists layers without types
    images, profile = network.get_input(0), builder.create_optimization_profile()
    shape = (BATCH, *tuple(images.shape)[1:])
    profile.set_shape(images.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        return NO_ENGINE
    engine.write_bytes(built)
    return ""


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]) or 0)
