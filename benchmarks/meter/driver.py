"""One measurement by mlcommons-loadgen through the agent's own backend, so that only the meter differs from a bench.

Runs in the environment of mlcommons-loadgen with the bundle's agent.pyz on its path, and imports nothing else of this
project. Prints one JSON object. N images, B images of one query.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LOGGED = ":::MLLOG "
MARKS = {"min": "min", "p50": "50.00_percentile", "p90": "90.00_percentile", "p99": "99.00_percentile", "max": "max"}
EMPTY = (500, 0.05)  # queries and seconds with nothing to do: the cost of the meter itself
SPARE = 2.0  # loadgen makes its queries beforehand: too many cost nothing, too few end a run early


def main(argv: list[str] | None = None) -> int:
    """Measure once; returns the exit status."""
    options = _arguments(argv)
    sys.path.insert(0, str(options.agent))
    from agent import backends, machine, meter  # type: ignore[import-not-found, unused-ignore]

    images_NHWC = np.load(options.images)
    backend = backends.create("onnxruntime-cpu")
    backend.build(options.model, options.threads, options.batch)
    first_BHWC = np.ascontiguousarray(images_NHWC[: options.batch])
    warm = meter.warm_up(meter.timed(backend.infer, [first_BHWC]))
    reading = run(options, backend.infer, images_NHWC, statistics.median(warm.warmup_ms))
    if options.scenario == "SingleStream":
        options.samples, options.seconds = EMPTY
        reading["empty_ms"] = run(options, lambda _: None, images_NHWC, 0.01)["p50"]
    print(json.dumps({**reading, "settled": warm.settled, "runtime": backend.facts(), "machine": machine.state()}))
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("agent", "model", "images"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scenario", choices=("SingleStream", "Offline"), required=True)
    for name in ("threads", "batch", "samples"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    return parser.parse_args(argv)


def run(
    options: argparse.Namespace, infer: Callable[[np.ndarray], Any], images_NHWC: np.ndarray, query_ms: float
) -> dict[str, Any]:
    """Run one test of loadgen and return the results in its log.

    A query of SingleStream has one image, the query of Offline all samples.

    Args:
        options: scenario, batch, samples and seconds.
        infer: uint8 [B, H, W, 3] -> anything; returns when the inference is complete.
        images_NHWC: the images that queries are drawn from.
        query_ms: approximate time of `infer` for a batch.
    """
    import mlperf_loadgen as loadgen  # type: ignore[import-not-found, unused-ignore]

    batches_of_one = [np.ascontiguousarray(image[np.newaxis]) for image in images_NHWC]

    def issue_single(queries: list[Any]) -> None:
        for query in queries:
            infer(batches_of_one[query.index])
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0)])

    def issue_batches(queries: list[Any]) -> None:
        for start in range(0, len(queries), options.batch):
            part = queries[start : start + options.batch]
            infer(images_NHWC[[query.index for query in part]])
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0) for query in part])

    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, options.scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = round(1000 * options.seconds), options.samples
    settings.single_stream_expected_latency_ns = max(1, round(query_ms / SPARE * 1e6))
    settings.offline_expected_qps = 1000.0 * options.batch / query_ms
    log = loadgen.LogSettings()
    log.enable_trace, log.log_output.copy_summary_to_stdout = False, False
    sut = loadgen.ConstructSUT(issue_single if options.batch == 1 else issue_batches, lambda: None)
    library = loadgen.ConstructQSL(len(images_NHWC), len(images_NHWC), lambda _: None, lambda _: None)
    with tempfile.TemporaryDirectory() as logs:
        log.log_output.outdir = logs
        loadgen.StartTestWithLogSettings(sut, library, settings, log)
        text = (Path(logs) / "mlperf_log_detail.txt").read_text(encoding="utf-8")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(sut)
    return parse(text, options.scenario)


def parse(text: str, scenario: str) -> dict[str, Any]:
    """Parse mlperf_log_detail.txt: {"n", "min", "p50", "p90", "p99", "max"} in ms, or {"n", "per_second"}.

    Raises:
        ValueError: the log lacks a result: the test broke off.
    """
    entries = [json.loads(line[len(LOGGED) :]) for line in text.splitlines() if line.startswith(LOGGED)]
    values: Mapping[str, Any] = {entry["key"]: entry["value"] for entry in entries}
    try:
        if scenario == "Offline":
            return {"n": values["effective_samples_per_query"], "per_second": values["result_samples_per_second"]}
        return {
            "n": values["result_query_count"],
            **{name: values[f"result_{mark}_latency_ns"] / 1e6 for name, mark in MARKS.items()},
        }
    except KeyError as error:
        raise ValueError(f"mlperf_log_detail.txt has no {error.args[0]}: the test broke off") from None


if __name__ == "__main__":
    sys.exit(main())
