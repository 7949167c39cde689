"""What a graph's milliseconds are: the time of each kind of kernel, from the profiles of ONNX Runtime and OpenVINO.

    python -m benchmarks.quantize kernels --packs DIR [--students mobilenetv2 mobilenetv3]

The graphs are those that `run` made, ours and a peer's for each engine. Each runs one image at a time with one thread;
the graphs take turns, ROUNDS times QUERIES inferences. A line is a student. A graph's figure is the median over the
rounds. Profiling itself costs time, so the sums are compared with each other, not with the latencies of `run`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import append
from edgedistill.console import say
from edgedistill.errors import InputError

KIND = "quantize-kernels"
ROUNDS, QUERIES, WARM = 7, 60, 30
# a graph's name in the table, its engine, and its file in a student's folder
GRAPHS = (
    ("fp32", "onnxruntime", "student.fp32.onnx"),
    ("ours", "onnxruntime", "artefacts/student.int8-cpu.onnx"),
    ("onnxruntime-preset", "onnxruntime", "artefacts/onnxruntime-preset.onnx"),
    ("ours", "openvino", "artefacts/student.int8-cpu.onnx"),
    ("nncf", "openvino", "artefacts/nncf.xml"),
    ("fp32", "openvino-reduced", "student.fp32.onnx"),
)
KERNELS: Mapping[str, frozenset[str]] = {  # column -> names of ONNX Runtime's operators and of OpenVINO's layers
    "convolutions": frozenset(
        {"Conv", "QLinearConv", "FusedConv", "Convolution", "GroupConvolution", "Gemm", "QGemm", "FullyConnected"}
        | {"FullyConnectedQuantizedLegacy"}
    ),
    "elementwise": frozenset(
        {"Mul", "Add", "HardSigmoid", "QLinearMul", "QLinearAdd", "QLinearLeakyRelu", "Subgraph", "Eltwise"}
    ),
}
REST = "the rest"
Milliseconds = dict[str, tuple[float, float]]  # kernel -> milliseconds and number of calls of one inference
Round = Callable[[int], Milliseconds]  # a number of inferences -> their mean


def column_of(kernel: str) -> str:
    """The table's column of an operator or layer."""
    return next((column for column, names in KERNELS.items() if kernel in names), REST)


def onnxruntime_round(path: Path, image_BHWC: np.ndarray, folder: Path) -> Round:
    """Rounds of one graph in ONNX Runtime, each in a session of its own, because a profile ends with its session."""
    import onnxruntime

    def measure(queries: int) -> Milliseconds:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for _ in range(WARM + queries):
            session.run(None, {name: image_BHWC})
        return of_profile(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")), WARM, queries)

    return measure


def of_profile(events: Iterable[Mapping[str, Any]], warm: int, queries: int) -> Milliseconds:
    """The mean over the last `queries` of `warm + queries` inferences in a profile of ONNX Runtime."""
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    nodes = nodes[len(nodes) * warm // (warm + queries) :]
    milliseconds: Counter[str] = Counter()
    calls = Counter(event["args"]["op_name"] for event in nodes)
    for event in nodes:
        milliseconds[event["args"]["op_name"]] += event["dur"] / 1000
    return {kernel: (milliseconds[kernel] / queries, calls[kernel] / queries) for kernel in calls}


def openvino_round(path: Path, image_BHWC: np.ndarray, reduced: bool) -> Round:
    """Rounds of one graph in OpenVINO, floats in float32 or, if `reduced`, in bf16."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([1, *image_BHWC.shape[1:]])
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True}
    precision = {"INFERENCE_PRECISION_HINT": "bf16" if reduced else "f32"}
    request = core.compile_model(model, "CPU", {**settings, **precision}).create_infer_request()

    def measure(queries: int) -> Milliseconds:
        milliseconds: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for query in range(WARM + queries):
            request.infer({0: image_BHWC})
            for layer in request.profiling_info if query >= WARM else ():
                milliseconds[layer.node_type] += layer.real_time.total_seconds() * 1000
                calls[layer.node_type] += layer.status == openvino.ProfilingInfo.Status.EXECUTED
        return {kernel: (milliseconds[kernel] / queries, count / queries) for kernel, count in calls.items() if count}

    return measure


def run(name: str, runs: Path) -> None:
    """Profile a student's graphs in turn, and append the line.

    Raises:
        InputError: `run` has not made a graph.
    """
    folder = runs / name
    missing = [path for _, _, path in GRAPHS if not (folder / path).is_file()]
    if missing:
        raise InputError(f"{folder}: no {', '.join(missing)}", f"run --students {name} makes them")
    image_BHWC = np.load(folder / "test.npy", mmap_mode="r")[:1].copy()
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgedistill-")))
        measures = [
            onnxruntime_round(folder / path, image_BHWC, temporary)
            if engine == "onnxruntime"
            else openvino_round(folder / path, image_BHWC, reduced=engine == "openvino-reduced")
            for _, engine, path in GRAPHS
        ]
        rounds = [[measure(QUERIES) for measure in measures] for _ in range(ROUNDS)]
    profiles = [
        {"graph": graph, "engine": engine, "kernels": middle([results[place] for results in rounds])}
        for place, (graph, engine, _) in enumerate(GRAPHS)
    ]
    line = {"student": name, "px": image_BHWC.shape[1], "profiles": profiles}
    append(KIND, line)
    say(markdown([line]))


def middle(rounds: Sequence[Milliseconds]) -> dict[str, tuple[float, int]]:
    """The median milliseconds of every kernel over the rounds, and the calls of one inference."""
    return {
        kernel: (round(float(np.median([results[kernel][0] for results in rounds])), 4), round(calls))
        for kernel, (_, calls) in rounds[0].items()
    }


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """A row a graph and engine, newest line of each student."""
    newest = {line["student"]: line for line in lines}
    if not newest:
        return "Not measured yet."
    columns = (*KERNELS, REST)
    rows = [
        f"| student | engine | graph | ms | {', ms (kernels) | '.join(columns)}, ms (kernels) |",
        "| --- " * 7 + "|",
    ]
    for name, line in newest.items():
        for profile in line["profiles"]:
            sums = {column: [0.0, 0] for column in columns}
            for kernel, (milliseconds, calls) in profile["kernels"].items():
                sums[column_of(kernel)][0] += milliseconds
                sums[column_of(kernel)][1] += calls
            total = sum(milliseconds for milliseconds, _ in sums.values())
            cells = [f"{milliseconds:.2f} ({calls})" for milliseconds, calls in sums.values()]
            rows.append(f"| {name} | {profile['engine']} | {profile['graph']} | {total:.2f} | {' | '.join(cells)} |")
    return "\n".join(rows)
