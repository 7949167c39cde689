"""A process that serves one model by JSON lines: a command a line on stdin, a reply a line on stdout.

    {"load": path, "runtime": "onnxruntime"|"openvino", "threads": 1, "images": npy}  -> {"loaded": path, ...}
    {"warm": seconds}                                                                -> {"queries": n}
    {"time": n}                                                                      -> {"samples_ms": [...]}
    {"predict": npy, "out": npy, "simulate": bool, "first": n}                       -> {"images": n}
    {"quit": true}

A command that fails has the reply {"failed": reason}, and the process goes on. Between commands it is blocked on stdin.
Runs in the environment of its runtime, so it imports nothing of this project. N images, C classes.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

import numpy as np

DISTINCT = 64  # images that the timed queries cycle through: 9 MB at 224 px, more than most second-level caches hold


class Session(Protocol):
    """A model in its runtime; a query has at most `batch` images."""

    batch: int

    def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Compute logits [B, C] of uint8 images; both arrays are in host memory."""
        ...

    def facts(self) -> dict[str, str]:
        """The runtime's version and settings."""
        ...


class Onnxruntime:
    """ONNX Runtime on the CPU; with `simulate` no graph optimization, so Q and DQ are computed as written."""

    batch = 16

    def __init__(self, path: str, threads: int, px: int, simulate: bool) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if simulate:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.version = onnxruntime.__version__
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
        logits_BC: np.ndarray = self.session.run(["logits"], {"images": images_BHWC})[0]
        return logits_BC

    def facts(self) -> dict[str, str]:
        return {"onnxruntime": self.version}


class Openvino:
    """OpenVINO on the CPU, with the batch fixed at one: its plugin is slower where shapes are dynamic."""

    batch = 1

    def __init__(self, path: str, threads: int, px: int, simulate: bool) -> None:
        import openvino  # type: ignore[import-not-found, unused-ignore]

        if simulate:
            raise ValueError("only onnxruntime simulates")
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape([1, px, px, 3])
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = core.compile_model(model, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self.version = openvino.__version__

    def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
        logits_BC: np.ndarray = self.request.infer([images_BHWC], share_inputs=True)[0]
        return logits_BC

    def facts(self) -> dict[str, str]:
        precision = self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return {"openvino": self.version, "inference_precision": precision}


RUNTIMES: dict[str, type[Onnxruntime] | type[Openvino]] = {"onnxruntime": Onnxruntime, "openvino": Openvino}


class Worker:
    """Executes the commands. Sessions are opened at first use: one that simulates and one that does not."""

    def __init__(self) -> None:
        self.load_message: dict[str, Any] = {}
        self.sessions: dict[bool, Session] = {}
        self.queue: Iterator[np.ndarray] = iter(())

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Execute one command and return the reply."""
        for name in ("load", "warm", "time", "predict"):
            if name in message:
                reply: dict[str, Any] = getattr(self, name)(message)
                return reply
        raise ValueError(f"unknown command: {', '.join(message)}")

    def session(self, simulate: bool) -> Session:
        """Return the model's session; the first call opens it."""
        if simulate not in self.sessions:
            runtime = RUNTIMES[self.load_message["runtime"]]
            self.sessions[simulate] = runtime(
                self.load_message["load"], self.load_message["threads"], self.px, simulate
            )
        return self.sessions[simulate]

    def load(self, message: dict[str, Any]) -> dict[str, Any]:
        """Open the model, and keep the images of the timed queries as contiguous arrays."""
        images_NHWC = np.array(np.load(message["images"], mmap_mode="r")[:DISTINCT])
        self.load_message, self.px = message, images_NHWC.shape[1]
        self.sessions.clear()
        self.queue = itertools.cycle([images_NHWC[row : row + 1] for row in range(len(images_NHWC))])
        started = time.monotonic()
        facts = self.session(bool(message.get("simulate"))).facts()
        return {"loaded": message["load"], "seconds": round(time.monotonic() - started, 3), "facts": facts}

    def warm(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run queries for so many seconds; at least one."""
        end, queries, session = time.monotonic() + message["warm"], 0, self.session(False)
        while queries == 0 or time.monotonic() < end:
            session(next(self.queue))
            queries += 1
        return {"queries": queries}

    def time(self, message: dict[str, Any]) -> dict[str, Any]:
        """Time n queries of one image, each started when the one before has returned."""
        samples_ms, session = [], self.session(False)
        for image_1HWC in itertools.islice(self.queue, message["time"]):
            began = time.perf_counter_ns()
            session(image_1HWC)
            samples_ms.append((time.perf_counter_ns() - began) / 1e6)
        return {"samples_ms": samples_ms}

    def predict(self, message: dict[str, Any]) -> dict[str, Any]:
        """Write logits float32 [N, C] of the first images of a file to another file."""
        images_NHWC = np.load(message["predict"], mmap_mode="r")[: message.get("first")]
        session = self.session(bool(message.get("simulate")))
        starts = range(0, len(images_NHWC), session.batch)
        logits_NC = [session(np.array(images_NHWC[start : start + session.batch])) for start in starts]
        np.save(message["out"], np.concatenate(logits_NC).astype(np.float32))
        return {"images": len(images_NHWC)}


def serve(commands: TextIO, replies: TextIO) -> None:
    """Reply to commands until they end or one is `quit`."""
    worker = Worker()
    for line in commands:
        message = json.loads(line)
        if "quit" in message:
            return
        try:
            reply = worker.answer(message)
        except Exception as error:  # any exception of a runtime is the result of its model
            reply = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    """Serve; stdout is for the replies alone, so that the output of libraries goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
