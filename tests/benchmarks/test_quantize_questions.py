"""The int8 tables on distilled and trained students, QAT, full exports and readings of one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quantize import alike, distilled, kernels, trained, whole
from edgedistill.errors import InputError
from edgedistill.recipe.schema import Recipe
from edgedistill.students import space
from tests.helpers.quantize_lines import Line, rows


def cell(method: str, target: str, seed: int, drop: float, **fields: Any) -> Line:
    """One student's result line of `distilled`."""
    return {
        "target": target,
        "method": method,
        "seed": seed,
        "config": method,
        "top1_fp32": 0.5,
        "drop": drop,
        "differ": 2.0,
        "noise": 3.0,
        **fields,
    }


def lines_of(method: str, extra_drops: list[float], **fields: Any) -> list[Line]:
    """Lines of two targets, one seed per extra drop over the fine-tuned students, which lose half a point."""
    return [
        cell(method, target, seed, 0.5 + extra, **fields) for target in "xy" for seed, extra in enumerate(extra_drops)
    ]


def test_table_has_loss_of_distilled_students_and_difference() -> None:
    base, clear = lines_of("transfer", [0.0, 0.0]), lines_of("weighted", [1.0, 1.2], differ=2.5, top1_fp32=0.6)
    even = lines_of("selftrained", [-1.0, 1.2])
    text = distilled.markdown([*base, *clear, *even])
    cells = rows(text)
    assert cells["transfer"] == ["50.0", "0.50", "-", "2.00", "-", "3.00", "-"]
    assert cells["weighted"] == [
        "60.0",
        "1.60",
        "+1.10 [+1.00, +1.20]",
        "2.50",
        "+0.50 [+0.50, +0.50]",
        "3.00",
        "+0.00 [+0.00, +0.00]",
    ]
    assert cells["selftrained"][2] == "+0.10 [-1.00, +1.20]"
    assert text.splitlines()[-1] == (
        "weighted students lose more accuracy to int8 than fine-tuned ones; "
        "selftrained students lose not measurably more or less accuracy to int8 than fine-tuned ones."
    )
    assert {len(row) for row in cells.values()} == {1 + 2 * len(distilled.MEASURES)}


def test_method_that_loses_less_is_named() -> None:
    base, clear, even = (
        lines_of(name, extra_drops)
        for name, extra_drops in (("transfer", [0.0, 0.0]), ("weighted", [-0.5, -0.4]), ("selftrained", [-1.2, 1.0]))
    )
    text = distilled.markdown([*base, *clear, *even])
    assert "weighted students lose less accuracy" in text
    assert "selftrained students lose not measurably more or less accuracy" in text


@pytest.mark.parametrize("base", [[], lines_of("transfer", [0.0, 0.0])[1:2]])
def test_method_without_common_draw_is_not_measured(base: list[Line]) -> None:
    text = distilled.markdown([*base, cell("weighted", "x", 0, 1.5)])
    assert rows(text)["weighted"][1:3] == ["1.50", "-"] and "selftrained" not in rows(text)
    assert text.endswith("weighted: not measured; selftrained: not measured.")


def test_rerun_of_cell_replaces_it() -> None:
    rerun = cell("transfer", "x", 0, 4.0, top1_fp32=0.7)
    assert rows(distilled.markdown([cell("transfer", "x", 0, 2.0), rerun]))["transfer"][:2] == ["70.0", "4.00"]


@pytest.mark.parametrize("name", ["target", "method", "seed", "config"])
def test_key_of_cell_depends_on_its_settings_only(name: str) -> None:
    line = cell("transfer", "x", 0, 0.5)
    assert distilled.key(line) != distilled.key({**line, name: "another"})
    assert distilled.key(line) == distilled.key({**line, "drop": 9.0, "noise": 9.0})


CELL, OTHER = trained.CELLS[:2]


def trained_line(name: str, lost: float, qat: bool = False, same: float | None = None, floats: int = 0) -> Line:
    """One student's result line of `trained`, or of `qat` with the agreement of its graphs."""
    graph = {"agreement": 0.98, "drop": [lost, lost - 1, lost + 1]}
    kept = {"artefact": "int8-cpu", "precision": "int8", "why": "", "ratio": [2.0, 1.9, 2.1], "target": "cpu"}
    return {
        "name": name,
        "qat": qat,
        "top1_fp32": 0.8,
        "graphs": {"int8-cpu": graph, **({} if qat else {"int8-tensorrt": {**graph, "drop": [0.0, -1.0, 1.0]}})},
        "guards": {target: {"holds": True, "floats": floats, "qat": same} for target in ("cpu", "tensorrt")[: 2 - qat]},
        "kept": [kept, {**kept, "target": "tensorrt", "artefact": "int8-tensorrt", "ratio": None}],
    }


def test_table_of_trained_students_has_row_of_each_graph_and_newest_line() -> None:
    lines = [trained_line(CELL, 9.0), trained_line(CELL, 2.0), trained_line(CELL, 0.5, qat=True, same=0.9975)]
    before, after = (
        [[cell.strip() for cell in row.strip("|").split("|")] for row in part.splitlines() if "| int8-" in row]
        for part in trained.markdown(lines).split("Trained on in int8 arithmetic")
    )
    family, _, pack = CELL.partition("-")
    start = [family, pack, "80.0%", "int8-cpu", "98.0%"]
    assert before == [
        [*start, "+2.0 [+1.0, +3.0]", "0", "int8-cpu, 2.00 [1.90, 2.10]"],
        [*start[:3], "int8-tensorrt", "98.0%", "+0.0 [-1.0, +1.0]", "0", "int8-tensorrt, not timed here"],
    ]
    assert after[0] == [*start, "+0.5 [-0.5, +1.5]", "0", "int8-cpu, 2.00 [1.90, 2.10]"]
    assert "not trained" not in trained.markdown(lines)
    assert trained.markdown([]) == "Not measured yet."


def test_graph_that_the_guard_left_untrained_is_marked() -> None:
    before, after = trained_line(CELL, 2.0), trained_line(CELL, 0.5, qat=True)
    first, rest = trained.markdown([before, after]).split("Trained on in int8 arithmetic")
    assert "not trained" not in first and "| int8-cpu, not trained |" in rest
    assert trained.NOT_TRAINED in rest


def test_students_that_lose_or_have_layers_in_float_are_trained_on() -> None:
    assert trained.losing([trained_line(CELL, 1.0), trained_line(OTHER, 1.1)]) == {OTHER: ("cpu",)}
    in_float = trained_line(CELL, 0.0, floats=1)
    assert trained.losing([in_float, trained_line(OTHER, 5.0, qat=True)]) == {CELL: ("cpu", "tensorrt")}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((2.0, 0.5), (1.0, 0.5), "holds"),
        ((2.0, 4.0), (1.01, 0.1), f"FAILS ({CELL}, int8-cpu)"),
        ((1.5, 3.0), (1.5, 2.0), f"FAILS ({CELL}, int8-cpu; {OTHER}, int8-cpu)"),
        ((1.0, 0.0), (1.0, 0.0), "not tested"),
    ],
)
def test_claim_that_half_of_int8_loss_is_regained(
    before: tuple[float, float], after: tuple[float, float], verdict: str
) -> None:
    names = (CELL, OTHER)
    lines = [
        {name: trained_line(name, lost, qat=qat, same=1.0) for name, lost in zip(names, losses, strict=True)}
        for qat, losses in ((False, before), (True, after))
    ]
    regained, same = trained.claims(*lines)
    assert regained == f"where int8 loses more than 1 point, training on in int8 arithmetic regains half: {verdict}"
    assert same.endswith(": holds")


@pytest.mark.parametrize(
    ("same", "verdict"),
    [
        (0.995, "holds"),
        (0.9949, f"FAILS ({CELL}, cpu)"),
        (None, f"not tested; the guard left out the trained graph of {CELL}, cpu"),
    ],
)
def test_claim_that_int8_graph_agrees_with_fake_quantized_student(same: float | None, verdict: str) -> None:
    claim = trained.claims({}, {CELL: trained_line(CELL, 0.0, qat=True, same=same)})[1]
    assert claim == f"the int8 graph has 99.5% or more of the fake-quantized student's labels: {verdict}"


def test_recipes_of_trained_students_are_valid(tmp_path: Path) -> None:
    for name in trained.CELLS:
        recipe = Recipe.model_validate(trained.recipe(name, tmp_path))
        spec = space.candidates(recipe.student, 7)[0]
        assert (recipe.name, spec.input_px) == (name, trained.PX)


@pytest.mark.parametrize(("seconds", "verdict"), [(240.0, "holds"), (240.1, "FAILS")])
def test_claim_that_full_export_takes_four_minutes(seconds: float, verdict: str) -> None:
    export = {"student": "a student", "calibration_images": 500, "val": 40, "test": 60, "again_seconds": 3.0}
    text = whole.markdown(
        [
            {**export, "seconds": 9.0, "steps": {}},
            {**export, "seconds": seconds, "steps": {"export": 8.4, "quantize": 99.6}},
        ]
    )
    assert text == (
        "`edgedistill export --int8`, a student, 500 images to calibrate on, 40 of val, 60 to test: "
        "240 s (export 8, quantize 100); again, with nothing changed: 3 s. "
        f"At most four minutes: {verdict}."
    )


def alike_line(student: str, same: float, **fields: Any) -> Line:
    """One student's result line of `alike`."""
    return {
        "student": student,
        "method": "minmax",
        "n_test": 800,
        "top1": 0.5,
        "fake_int8": same,
        "fake_literal": 1.0,
        "int8_literal": same,
        "cpu": "AMD EPYC",
        "cores": 2,
        "commit": "788fd575b4a9",
        "measured": "2026-11-23T08:30:00Z",
        **fields,
    }


def test_table_compares_readings_of_one_graph_and_names_close_ones() -> None:
    text = alike.markdown([alike_line("a", 0.9), alike_line("b", 0.995), alike_line("c", 0.9949), alike_line("a", 1.0)])
    assert rows(text)["a"] == ["50.0", "800", *["100.00 %"] * 3, "AMD EPYC, 2 cores", "788fd575b4a9"]
    assert text.endswith("- 99.5 % or more of the int8 graph's labels are the fake-quantized student's: a, b")
    assert alike.markdown([alike_line("a", 0.9)]).endswith("student's: nowhere")
    assert alike.markdown([]) == "Not measured yet."


def test_readings_from_before_the_arithmetic_was_mended_are_left_out_by_name() -> None:
    before = {"measured": "2026-11-23T08:00:00Z", "commit": "7c24472223f7+"}
    text = alike.markdown([alike_line("a", 1.0, **before), alike_line("b", 0.9, **before), alike_line("b", 1.0)])
    assert "a" not in rows(text) and rows(text)["b"][2] == "100.00 %"
    assert "student's: b\n" in text
    assert text.endswith("- left out, as measured before the arithmetic was mended: a (commit 7c24472223f7+)")


def event(kernel: str, microseconds: int, kind: str = "kernel_time") -> dict[str, Any]:
    """A node of ONNX Runtime's profile."""
    return {"cat": "Node", "name": f"node_{kind}", "dur": microseconds, "args": {"op_name": kernel}}


def test_profile_is_mean_of_inferences_after_the_warm_ones() -> None:
    inference = [event("Conv", 2000), event("Conv", 500, "fence_before"), event("Conv", 1000), event("Mul", 100)]
    warm = [event("Conv", 9000), event("Conv", 9000), event("Mul", 9000)]
    start = {"cat": "Session", "name": "model_run", "dur": 5, "args": {}}
    assert kernels.of_profile([start, *warm, *inference, *inference], warm=1, queries=2) == {
        "Conv": (3.0, 2.0),
        "Mul": (0.1, 1.0),
    }


def test_kernels_are_summed_by_column() -> None:
    rounds = [
        {"QLinearConv": (milliseconds, 2.0), "Subgraph": (0.5, 3.0), "Cast": (0.1, 1.0)}
        for milliseconds in (1.0, 9.0, 2.0)
    ]
    profile = {"graph": "ours", "engine": "openvino", "kernels": kernels.middle(rounds)}
    cells = rows(kernels.markdown([{"student": "net", "profiles": [profile]}]))
    assert cells["net"] == ["openvino", "ours", "2.60", "2.00 (2)", "0.50 (3)", "0.10 (1)"]
    assert kernels.markdown([]) == "Not measured yet."


def test_kernels_of_graphs_that_are_not_made_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no student\.fp32\.onnx, artefacts") as caught:
        kernels.run("resnet18", tmp_path)
    assert "run --students resnet18" in caught.value.fix
