"""report: text and figures for fixed numbers, unfinished and damaged runs, report.json.

The figures of `report_runs` by hand: accuracies have intervals of -2 / +1 points; weights 0.7, 0.2, 0.1 are
1 / (0.49 + 0.04 + 0.01) = 1.85 effective sources; parc's ceiling is 50; percentile q of a latency ramp from low to
2 low is low (1 + q / 100). Of 500 and 288 test images int8-cpu has 460 and 260 right: it calls 460 + 28 functional.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgedistill.errors import InputError
from edgedistill.measurements import BenchReport
from edgedistill.records import Checkpoint, Ladder, MetricScore, SourceWeight, SourceWeights, StudentSpec
from edgedistill.report import render
from edgedistill.report.blocks import WIDTH, number, share
from edgedistill.report.facts import read, warnings
from edgedistill.run.directory import Run
from edgedistill.run.files import read_json, read_record, write_json, write_record
from tests.helpers.report_runs import STEPS, make_run, ramp

GOLDEN = """\
demo  RUN

The student is resnet at 96 px: 91.2 % [89.2, 92.2] balanced accuracy in int8 against 91.5 % [89.5,
92.5] in fp32; p50 1.50 ms in int8 on local (onnxruntime-cpu), 2.00 [1.90, 2.10] times as fast as
fp32.

DATA
  elpv, 2 classes (functional, defective)
  images: 40 labeled, 10 val, 1786 unlabeled, 788 test
  license of the data: CC BY-NC-SA 4.0

SOURCES
  probe on 50 probe images decides, power 12; ceiling: the score of a perfect source
  source     weight          probe [95 %]  of ceiling        parc [95 %]  of ceiling
  lite0       0.700  0.800 [0.750, 0.840]        80 %  22.5 [19.5, 25.5]        45 %
  lite1       0.200  0.700 [0.650, 0.740]        70 %  31.0 [28.0, 34.0]        62 %
  mnist-net   0.100  0.550 [0.500, 0.590]        55 %  -4.0 [-7.0, -1.0]        -8 %
  effective number of sources 1.9 (1 / sum alpha^2) of 3
  probe and parc disagree about the best source: lite0 by probe, lite1 by parc

STUDENT
  resnet at 96 px (width 0.5, depth 2)
  123 M MACs, 0.850 M params, 3.40 MB of weights, 2.50 MB of activations at their peak (fp32)
  initial weights: random
  int8 accuracy risks: hard-swish
  found among 6 candidates, 4 of them trained
  weighted, 1000 steps in 84 s; val 92.0 % [90.0, 93.0] on 10 images

ACCURACY
  788 test images, 95 % intervals
  artifact         balanced accuracy  agrees with torch  size MB                       run by
  torch          91.5 % [89.5, 92.5]            100.0 %        -                        torch
  fp32           91.5 % [89.5, 92.5]            100.0 %     3.42              onnxruntime-cpu
  int8-cpu       91.2 % [89.2, 92.2]             98.5 %    0.950              onnxruntime-cpu
  int8-tensorrt  91.0 % [89.0, 92.0]             98.0 %    0.960  onnxruntime-cpu (simulated)

CLASSES
  int8-cpu on 788 test images, 95 % intervals (Wilson)
  class       images        recall [95 %]     precision [95 %]  fp32 recall  fp32 precision
  functional     500  92.0 % [89.3, 94.1]  94.3 % [91.8, 96.0]       94.0 %          94.0 %
  defective      288  90.3 % [86.3, 93.2]  86.7 % [82.4, 90.1]       89.6 %          89.6 %

CONFUSIONS
  the most frequent mistakes of int8-cpu
  true class   predicted  images  of the class  fp32 images
  functional   defective      40         8.0 %           30
  defective   functional      28         9.7 %           30

UNKNOWN
  accuracy of the answers, if the least sure ones are left out; int8-cpu on 100 test images, 95 %
    intervals (Wilson)
  answered                  images        accuracy [95 %]
  at the threshold: 61.0 %      61  100.0 % [94.1, 100.0]
  100.0 %                      100    80.0 % [71.1, 86.7]
  95.0 %                        95    84.2 % [75.6, 90.2]
  90.0 %                        90    88.9 % [80.7, 93.9]
  80.0 %                        80  100.0 % [95.4, 100.0]
  50.0 %                        50  100.0 % [92.9, 100.0]
  it says "unknown" where its probability is below 40.0 %
  of 100 labeled images that it had not seen 61.0 % are answered, 100.0 % of them rightly
  a picture of something else may still get an answer
  temperature 1.50; fitted on 10 labeled images; asked for: coverage 0.9
  probabilities are off by 33.7 points in the mean (without the temperature by 20.6)

PRECISION
  the graph for each target, and why
  cpu: int8-cpu: loses 0.3 points; 2.1 [2.0, 2.2] times as fast as fp32
  tensorrt: int8-tensorrt: loses 0.3 points; its speed is measured there
  cpu: in float, worst first: conv_stem

ENGINES
  no builder is installed

LATENCY on local
  onnxruntime-cpu 1.20.0, batch 1; timed: session.run, host to host
  artifact  p50 ms  p90 ms  p99 ms  min-max ms  times as fast as fp32  size MB
  fp32        3.00    3.80    3.98   2.00-4.00                      -     3.42
  int8-cpu    1.50    1.90    1.99   1.00-2.00      2.00 [1.90, 2.10]    0.950
  fp32: 101 samples, 92.0 % [90.0, 93.0] on 500 images there, same answer as the host on 100.0 %
  int8-cpu: 101 samples, 91.0 % [89.0, 92.0] on 500 images there, same answer as the host on 100.0
    %; to run here: int8-cpu

LATENCY on board
  onnxruntime-cpu 1.20.0, batch 1; timed: session.run, host to host
  artifact  p50 ms  p90 ms  p99 ms  min-max ms  times as fast as fp32  size MB
  fp32        30.0    38.0    39.8   20.0-40.0                      -     3.42
  int8-cpu    15.0    19.0    19.9   10.0-20.0      2.00 [1.90, 2.10]    0.950
  fp32: 101 samples, 92.0 % [90.0, 93.0] on 500 images there, same answer as the host on 100.0 %
  int8-cpu: 101 samples, 91.0 % [89.0, 92.0] on 500 images there, same answer as the host on 100.0
    %; to run here: int8-cpu

DEVICES side by side
  host to host, batch 1
  device, backend, artifact       accuracy  p50 ms  p90 ms  p99 ms  times as fast as fp32     MB
  local onnxruntime-cpu fp32        92.0 %    3.00    3.80    3.98                      -   3.42
  local onnxruntime-cpu int8-cpu    91.0 %    1.50    1.90    1.99      2.00 [1.90, 2.10]  0.950
  board onnxruntime-cpu fp32        92.0 %    30.0    38.0    39.8                      -   3.42
  board onnxruntime-cpu int8-cpu    91.0 %    15.0    19.0    19.9      2.00 [1.90, 2.10]  0.950
  local: fastest: int8-cpu on onnxruntime-cpu, p50 1.50 ms
  board: fastest: int8-cpu on onnxruntime-cpu, p50 15.0 ms

GATES
  gate                 value     bound  result
  fp32 agreement           1  >= 0.999    pass
  fp32 relative error  0.002  <= 0.001    FAIL

LICENSES
  commercial: no (data elpv); as stated by publishers and the recipe, no legal advice
  data elpv: CC BY-NC-SA 4.0; commercial: no
  source lite0: not stated; commercial: not stated
  source lite1: apache-2.0; commercial: yes

WARNINGS
  data: 2 corrupt images left out: a.png, b.png
  quantize: 200 images, not 500, to calibrate
  local, onnxruntime-cpu, int8-cpu: noisy: p50/min is 1.5; use a quieter machine or --set
    bench.seconds=10
  board, onnxruntime-cpu, int8-cpu: noisy: p50/min is 1.5; use a quieter machine or --set
    bench.seconds=10
  gate failed: fp32 relative error is 0.002, must be <= 0.001

Report: not written yet: edgedistill report
"""


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with its report; shared by tests, which must not change it."""
    run = make_run(tmp_path_factory.mktemp("runs"))
    render.write(run)
    return run


def int8_bench(run: Run) -> BenchReport:
    return read_record(run / "bench/local/onnxruntime-cpu-int8-cpu.json", BenchReport)


def write_int8_bench(run: Run, report: BenchReport) -> None:
    write_record(run / "bench/local/onnxruntime-cpu-int8-cpu.json", report)


def test_text_of_finished_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert render.text(run).replace(str(run.path), "RUN") == GOLDEN


def test_text_names_path_of_report(finished_run: Run) -> None:
    assert render.text(finished_run).endswith(f"Report: {finished_run / 'report.html'}\n")


@pytest.mark.parametrize("upto", ["", *STEPS[:-1]])
def test_text_of_unfinished_run_names_next_command(tmp_path: Path, upto: str) -> None:
    run = make_run(tmp_path, upto)
    text = render.text(run)
    assert "not run yet: edgedistill bench" in text
    assert ("not run yet: edgedistill train" in text) == (upto in ("", "weigh", "search"))
    assert ("not run yet: edgedistill export" in text) == (upto != "verify")
    assert max(map(len, text.splitlines()[1:])) <= WIDTH


@pytest.mark.parametrize("upto", ["", "distill", "verify"])
def test_files_of_unfinished_run_name_next_command(tmp_path: Path, upto: str) -> None:
    content, page = render.write(make_run(tmp_path, upto))
    assert [content.name, page.name] == ["report.json", "report.html"]
    assert "not run yet: edgedistill bench" in page.read_text(encoding="utf-8")
    assert any("edgedistill bench" in line for line in read_json(content)["not_run"])


def test_empty_directory_has_a_report(tmp_path: Path) -> None:
    run = Run(path=tmp_path)
    assert "not read yet: edgedistill train" in render.text(run)
    assert "No student yet" in render.html(run)


def test_recipe_without_sources_is_not_reported_as_missing_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, "")
    lock = read_json(run / "recipe.lock.json")
    lock["recipe"]["sources"] = []
    (run / "recipe.lock.json").write_text(json.dumps(lock), encoding="utf-8")
    assert "SOURCES\n  the recipe names none\n" in render.text(run)


def test_broken_file_is_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "verify/ladder.json").write_text('{"rungs": 3}', encoding="utf-8")
    with pytest.raises(InputError, match=r"ladder\.json: is not a Ladder"):
        render.text(run)
    (run / "verify/ladder.json").unlink()
    (run / "verify/mistakes.npz").write_bytes(b"PK but not really")
    with pytest.raises(InputError, match=r"mistakes\.npz: cannot be read"):
        render.html(run)


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [
        ((2.0, 1.9, 2.1), "2.00 [1.90, 2.10] times as fast as fp32"),
        # 1 / 0.5 = 2, with the interval inverted: [1 / 0.625, 1 / 0.4]
        ((0.5, 0.4, 0.625), "2.00 [1.60, 2.50] times as slow as fp32: fp32 is the one to ship here"),
        ((1.02, 0.95, 1.08), "no measurable difference from fp32 (ratio 1.02 [0.95, 1.08])"),
    ],
)
def test_summary_describes_speed_ratio(tmp_path: Path, ratio: tuple[float, float, float], sentence: str) -> None:
    run = make_run(tmp_path)
    write_int8_bench(run, dataclasses.replace(int8_bench(run), ratio_to_fp32=ratio))
    assert render.collect(run)["summary"].endswith(f"{sentence}.")


def test_graph_that_answers_otherwise_on_the_device_has_no_latency_in_the_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    measured = int8_bench(run)
    latency = dataclasses.replace(measured.latency, samples_ms=())
    write_int8_bench(run, dataclasses.replace(measured, latency=latency, agreement_with_host=0.98))
    summary = render.collect(run)["summary"]
    assert "inf" not in summary and "p50 3.00 ms in fp32 on local" in summary


def test_measurement_of_earlier_artifact_is_a_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_int8_bench(run, dataclasses.replace(int8_bench(run), sha256="9" * 64, warnings=()))
    assert "local, onnxruntime-cpu, int8-cpu: measured an earlier artifact (99999999); run edgedistill bench again" in (
        warnings(read(run))
    )
    assert "in int8 against" not in render.collect(run)["summary"]


@pytest.mark.parametrize(("halves", "warned"), [(6, True), (38, True), (39, False), (None, False)])
def test_few_half_samples_are_a_warning(tmp_path: Path, halves: int | None, warned: bool) -> None:
    run = make_run(tmp_path)
    lock = read_json(run / "recipe.lock.json")
    lock["recipe"]["weigh"] = {} if halves is None else {"bootstrap": halves}
    write_json(run / "recipe.lock.json", lock)
    few = f"weigh: the 95 % intervals come from too few half-samples ({halves}), at least 39 are needed; "
    assert (f"{few}set weigh.bootstrap to 39" in warnings(read(run))) == warned


def test_summary_is_of_fastest_int8(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    faster = dataclasses.replace(int8_bench(run), artefact="int8-tensorrt", sha256="2" * 64, latency=ramp(0.5))
    write_record(run / "bench/local/tensorrt-int8-tensorrt.json", faster)
    assert "91.0 % [89.0, 92.0] balanced accuracy in int8" in render.collect(run)["summary"]
    assert "p50 0.750 ms" in render.collect(run)["summary"]


def test_many_metrics_and_long_names_stay_within_width(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    scores = {f"metric-{index}": MetricScore(score=-90.5, low=-95.0, high=90.0) for index in range(7)}
    sources = tuple(SourceWeight(name="s" * 60 + str(index), weight=0.25, scores=scores) for index in range(4))
    write_record(
        run / "weigh/weights.json", SourceWeights(metric="metric-3", probe_images=50, power=12.0, sources=sources)
    )
    text = render.text(run)
    assert max(map(len, text.splitlines()[1:])) <= WIDTH
    # names that differ only at their end stay distinct
    assert all(text.count(f"sss{index}  ") == 3 for index in range(4))
    assert all(text.count(f"metric-{index} [95 %]") == 1 for index in range(7))
    render.html(run)


def test_sources_without_scores_are_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sources = (SourceWeight(name="a", weight=0.5, scores={}), SourceWeight(name="b", weight=0.5, scores={}))
    write_record(run / "weigh/weights.json", SourceWeights(metric="none", probe_images=0, power=0.0, sources=sources))
    assert "effective number of sources 2.0 (1 / sum alpha^2) of 2\n" in render.text(run)
    assert "Weights of the sources: a 0.50, b 0.50; effective number of sources 2.0" in render.html(run)


def test_terminal_codes_in_names_are_replaced(tmp_path: Path) -> None:
    run = make_run(tmp_path, classes=("\x1b[31mred", "\udcff\u202ename"))
    text = render.text(run)
    assert not re.search(r"[^\n -~]", text)
    assert "?[31mred, ??name" in text
    render.write(run)


def test_compare_lists_one_row_per_run(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, name="one"), make_run(tmp_path, "quantize", name="two")
    assert render.compare([first, second]) == (
        "balanced accuracy, 95 % intervals; latency on local, onnxruntime-cpu\n"
        "run           M MACs        fp32 or torch                 int8  p50 ms  vs fp32     MB\n"
        "one-0a1b2c3d     123  91.5 % [89.5, 92.5]  91.2 % [89.2, 92.2]    1.50     2.00  0.950\n"
        "two-0a1b2c3d     123  91.5 % [89.5, 92.5]                    -       -        -      -\n"
    )


def test_compare_warns_of_different_data(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name="one"), make_run(tmp_path, name="two", classes=("a",))]
    assert "different data" in render.compare(runs)


def test_json_round_trip(finished_run: Run) -> None:
    content = render.collect(finished_run)
    assert read_json(finished_run / "report.json") == content
    json.dumps(content, allow_nan=False)
    local = content["bench"][1]["latency"]
    assert local["samples"] == 101
    assert local["percentiles_ms"]["p99"] == pytest.approx(1.99)
    assert content["calibration"]["images"] == 200
    assert content["sources"]["effective_sources"] == pytest.approx(1 / 0.54)
    assert content["not_run"] == []


def test_json_has_no_nan(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    line = {"step": 1, "loss": float("nan"), "terms": {"a": float("inf")}, "val": {"balanced": float("nan")}}
    ladder = read_record(run / "verify/ladder.json", Ladder)
    broken = dataclasses.replace(ladder.gates[0], value=float("nan"), passed=False)
    write_record(run / "verify/ladder.json", dataclasses.replace(ladder, gates=(broken,)))
    (run / "distill/metrics.jsonl").write_text(json.dumps(line), encoding="utf-8")
    content = render.collect(run)
    json.dumps(content, allow_nan=False)
    assert content["val"][0]["val"]["balanced"] is None


def test_report_loads_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from edgedistill.report import render\nfrom edgedistill.run.directory import Run\n"
        f"run = Run(path=Path({str(run.path)!r})); render.text(run); render.collect(run); render.compare([run])\n"
        "assert 'matplotlib' not in sys.modules\n"
        "render.write(run); assert 'matplotlib' in sys.modules\n"
        "assert not {'torch', 'timm', 'onnx', 'onnxruntime', 'sklearn', 'matplotlib.pyplot'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_shares_are_rounded_down_and_numbers_to_three_digits() -> None:
    assert [number(figure) for figure in (0.1234, 1.234, 12.34, 1234.5)] == ["0.123", "1.23", "12.3", "1234"]
    # 787 of 788 is 99.873 %; 9999 of 10000 must not be shown as 100 %
    assert [share(fraction) for fraction in (1.0, 0.9999, 787 / 788, 0.29)] == ["100.0 %", "99.9 %", "99.8 %", "29.0 %"]


def test_result_file_may_have_fields_beyond_the_record(finished_run: Run) -> None:
    assert read_json(finished_run / "distill/result.json")["n_test"] == 788
    spec = read_record(finished_run / "distill/result.json", Checkpoint).spec
    assert isinstance(spec, StudentSpec)
    assert render.collect(finished_run)["result"]["spec"]["input_px"] == 96


def test_labels_of_one_group_are_counted_as_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    recorded = read_json(run / "data.json")
    assert "count as one" not in render.text(run)
    write_json(run / "data.json", {**recorded, "labeled_units": 12})
    assert "labels of one group or of near-copies count as one: 12 in all" in render.text(run)


def test_near_copies_are_in_the_block_of_the_data(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    recorded = read_json(run / "data.json")
    assert "near-copies" not in render.text(run)
    write_json(run / "data.json", {**recorded, "near_copies": {"images": 5, "sets": 2, "inseparable": []}})
    assert "near-copies: 5 images, each set of them on one side of every split (sets: 2)" in render.text(run)
    write_json(run / "data.json", {**recorded, "near_copies": {"images": 0, "sets": 0, "inseparable": ["a", "b"]}})
    assert "near-copies: not kept together in classes that they leave one picture: a, b" in render.text(run)
