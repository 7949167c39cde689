"""The suite's page and plots: what they say, half-done suites, and that what is committed is current."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import lines as committed
from benchmarks.suite import contrasts, markdown, plots, protocol, table
from tests.helpers.suite_lines import PROFILE, Line, draw, run, suite


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty page, no plots and no lines; gives the file that lines go into."""
    page = tmp_path / "README.md"
    names = [*markdown.SECTIONS, "tuning", "plots"]
    page.write_text("\n".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->" for name in names))
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "PLOTS", tmp_path / "plots")
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    return tmp_path / "suite_some-cpu_202611.jsonl"


def write(path: Path, lines: list[Line]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells of a Markdown table."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


def test_what_is_committed_is_current() -> None:
    assert not table.stale(), "run `python -m benchmarks.suite table`"


def test_nothing_measured(results: Path) -> None:
    assert table.main(check=False) == 0 and table.main(check=True) == 0
    text = table.PAGE.read_text()
    assert text.count(markdown.NOTHING) == 6 and text.count("**not measured**") == 10  # eight rows, two wholes
    assert not table.PLOTS.exists() and table.headline() == markdown.NOTHING


def test_a_stale_page_is_found_and_rewritten(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(results, suite())
    before = table.PAGE.read_text()
    assert table.main(check=True) == 1 and table.PAGE.read_text() == before and not table.PLOTS.exists()
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: not current" for name in ("README.md", "plots/differences_made.svg", "plots/regret_made.svg")
    ]
    assert table.main(check=False) == 0 and table.main(check=True) == 0
    assert table.PAGE.read_text().count("plots/differences_made.svg") == 1
    write(results, [*suite(), run("target0", "transfer", 0, 0.1, measured="2026-12-01T00:00:00Z")])
    assert set(table.stale()) == {table.PAGE, table.PLOTS / "differences_made.svg"}  # sources and regret stay the same


def test_plots_of_lines_that_are_gone_go_too(results: Path) -> None:
    write(results, suite())
    table.main(check=False)
    results.unlink()
    assert table.main(check=True) == 1
    table.main(check=False)
    assert list(table.PLOTS.iterdir()) == [] and table.main(check=True) == 0


def test_a_page_without_a_marker_is_an_error() -> None:
    with pytest.raises(ValueError, match="lacks the markers <!-- methods: begin -->"):
        table.page("no markers", [], [])


def test_methods_by_target() -> None:
    (board,) = table.evidence(suite())
    found = rows(markdown.methods(board))
    # weighted: 46, 49, 52 on every target; the random control: (40 + 44) / 2 and a point more a seed
    assert found["`weighted`"] == ["49.0", *["49.0 ± 3.0"] * 3, "3", "51"]
    assert found["`random`"] == ["43.0", *["43.0 ± 1.0"] * 3, "3", "-"]
    assert "single" not in markdown.methods(board)
    order = [name for name in found if name.startswith("`")]
    assert order[:4] == ["`adapted`", "`weighted`", "`oracle nearest`", "`static best`"]
    assert order[6:] == ["`fixmatch`", "`transfer`"]  # nearest and random tie


def test_balanced_accuracy_is_its_own_board() -> None:
    (board,) = table.evidence(suite(), "balanced_accuracy")
    assert rows(markdown.methods(board))["`weighted`"][0] == "39.0"


def test_claims() -> None:
    (board,) = table.evidence(suite(targets=6))
    text = markdown.claims(board)
    found = rows(text)
    assert [name.split(".")[0] for name in list(found)[2:]] == ["1", "2", "3a", "3b", "4", "5a", "5b", "6"]
    # 6, 8, 10 points on each of six targets: mean 8, all flips of six means: p = 2 / 64
    least, mean, above, p, wins, targets, seeds, verdict = found["1. weighted over transfer"]
    assert (least, above, p, wins, targets, seeds) == ("5.6", "100 % of draws", "0.031", "6 (6)", "6", "3")
    assert mean.startswith("+8.0 [+7.") and verdict == "**holds**"
    # 2 points over transfer, both, up to the last bit of a float
    _, mean, above, p, *_, verdict = found["2. nearest over a random source"]
    assert (mean, above, p, verdict) == ("+0.0 [+0.0, +0.0]", "0 % of draws", "1.000", "**fails**")
    assert found["3a. weighted beside nearest"][::7] == ["at least as good (margin 1.0)", "**holds**"]
    assert found["3b. weighted beside equal"] == ["at least as good (margin 1.0)", *["-"] * 6, "**not measured**"]
    # adapted has 10, weighted 6, 8, 10
    assert found["6. best beyond the paper over weighted (`adapted`)"][-1] == "**smaller than claimed**"
    # as good as static: two decimals for Spearman, one for points
    assert found["5a. similarity's Spearman over the static ranker's (`right`)"][1] == "+0.00 [+0.00, +0.00]"
    assert found["5b. similarity's regret under the static ranker's (`right`)"][1] == "+0.0 [+0.0, +0.0]"
    assert text.endswith("all of them do: claim 3: **not measured**; claim 5: **fails**.")


def test_what_was_not_claimed_has_no_verdict() -> None:
    (board,) = table.evidence(suite(targets=6))
    text = markdown.also(board)
    found = rows(text)
    assert found["difference"] == [
        "mean of targets [95 %]",
        "over 0 in",
        "p",
        "targets won (clearly)",
        "targets",
        "seeds",
    ]
    assert found["nearest over transfer"] == ["+2.0 [+2.0, +2.0]", "100 % of draws", "0.031", "6 (6)", "6", "3"]
    assert found["stacked over adapted"] == ["-"] * 6
    # adapted 50, 51, 52; the probe of a 50 in every draw
    assert found["best beyond the paper over the best source's probe (`adapted`)"][0].startswith("+1.0 [+0.")
    assert "on the unlabeled images" in text and not any(word in text for word in ("**", *contrasts.WORST_FIRST))


def test_pairs_by_target() -> None:
    (board,) = table.evidence(suite())
    # mean 8, deviation 2, t(0.975, 2) = 4.302653: 8 +- 4.302653 * 2 / sqrt(3) = 8 +- 4.968
    assert rows(markdown.per_target(board))["1. weighted over transfer"] == ["+8.0 [+3.0, +13.0], p 0.250, n 3"] * 3


def test_similarity_and_what_tells_the_truth() -> None:
    (board,) = table.evidence(suite())
    text = markdown.similarity(board)
    assert rows(text)["wrong"] == [
        "-1.00 [-1.00, -1.00]",
        "4.0 [4.0, 4.0]",
        "0 %",
        "-2.00 [-2.00, -2.00]",
        "-4.0 [-4.0, -4.0]",
        "3, 9",
    ]
    assert text.endswith("The truth is told by students distilled from each source alone: target0, target1, target2.")
    (probes,) = table.evidence([line for line in suite() if not line.get("method", "").startswith("single:")])
    assert "linear probes of the sources: target0" in markdown.similarity(probes)
    assert rows(markdown.similarity(probes))["wrong"][1] == "0.0 [0.0, 0.0]"  # by its probe, a is the better one


def test_ceilings_say_on_which_images() -> None:
    (board,) = table.evidence(suite())
    # transfer 41 on the mean, the ensemble 30; in balanced accuracy 31 and 90
    found = rows(markdown.ceilings(board))
    assert found["target"] == [
        "student, `transfer` (test)",
        "student, `weighted` (test)",
        "student, `adapted` (test)",
        "best source's probe (unlabeled)",
        "ensemble, `adapted` (unlabeled)",
    ]
    assert found["target0"] == ["41.0 ± 1.0", "49.0 ± 3.0", "51.0 ± 1.0", "50.0 ± 0.0 (a)", "30.0 ± 0.0"]
    (balanced,) = table.evidence(suite(), "balanced_accuracy")
    assert rows(markdown.ceilings(balanced))["target0"][-1] == "90.0 ± 0.0"


@pytest.mark.parametrize(
    "lines",
    [
        [run("x", "weighted", 0, 0.5)],
        [run("x", "weighted", 0, 0.5), run("x", "transfer", 1, 0.5)],
        [run("x", "weighted", 0, 0.5), run("y", "transfer", 0, 0.5)],
        [draw("x", 0, {"m": {"a": 1.0}}, {"a": 0.5})],
        [draw("x", 0, {"m": {"a": 1.0, "b": 1.0}}, {}), run("x", "single:a", 0, 0.5)],
        suite(targets=1, seeds=1),
        suite()[: len(suite()) // 2],
    ],
)
def test_a_suite_half_done_has_a_page(results: Path, lines: list[Line]) -> None:
    write(results, lines)
    text = table.stale()[table.PAGE]
    assert text is not None and "nan" not in text and "inf" not in text
    assert "**not measured**" in text


def test_means_over_part_of_the_targets_say_so() -> None:
    (board,) = table.evidence([run("x", "weighted", 0, 0.5), run("y", "transfer", 0, 0.25)])
    assert rows(markdown.methods(board))["`weighted`"] == ["50.0 (1 of 2 targets)", "50.0", "-", "1", "51"]


def test_lines_left_out_are_counted() -> None:
    later = run("x", "weighted", 0, 0.5, config="new", measured="2026-12-01T00:00:00Z")
    (board,) = table.evidence([run("x", "weighted", 0, 0.4), run("x", "weighted", 1, 0.4), later])
    assert markdown.methods(board).endswith("2 lines of older configurations left out.")


def test_packs_that_settings_were_chosen_on_are_in_no_table() -> None:
    profile = protocol.load("cpu")
    chosen_on, known = profile.tuning[0], {"profile": "cpu", "config": profile.config("transfer")}
    (board,) = table.evidence([run("x", "transfer", 0, 0.5, **known), run(chosen_on, "transfer", 0, 0.5, **known)])
    assert board.targets == ["x"]
    (other,) = table.evidence([run(chosen_on, "transfer", 0, 0.5, profile="unknown")])
    assert other.targets == [chosen_on]


def test_the_headline(results: Path) -> None:
    write(results, suite())
    found = rows(table.headline(PROFILE))
    assert found["`transfer`"] == ["41.0", "-", "-", "3"]
    assert found["`weighted`"][0] == "49.0" and found["`weighted`"][2:] == ["3 of 3", "3"]
    assert "`oracle nearest`" not in found
    assert table.headline("gpu") == markdown.NOTHING


def test_plots_are_the_same_bytes_each_time_and_carry_their_hash() -> None:
    (board,) = table.evidence(suite())
    first, again = plots.pictures(board), plots.pictures(board)
    assert first == again and set(first) == {"differences_made.svg", "regret_made.svg"}
    svg = first["differences_made.svg"]
    assert len(plots.mark(svg)) == 64 and len(svg) < 60_000
    assert ">weighted</text>" in svg and ">target2</text>" in svg and "dc:date" not in svg
    (other,) = table.evidence([*suite(), run("target0", "adapted", 0, 0.9, measured="2026-12-01T00:00:00Z")])
    assert plots.mark(plots.pictures(other)["differences_made.svg"]) != plots.mark(svg)
    assert plots.mark("<svg/>") == ""
