"""The suite's page and plots: content, unfinished suites, and that the committed files are current."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import lines as committed
from benchmarks.suite import contrasts, evidence, figures, markdown, protocol, table
from tests.helpers.suite_lines import PROFILE, Line, draw, run, suite


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty page without plots or lines; returns the file for lines."""
    page = tmp_path / "README.md"
    names = [*markdown.SECTIONS, "natural", "tuning", "confirm", "plots"]
    page.write_text("\n".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->" for name in names))
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "PLOTS", tmp_path / "plots")
    shown = tmp_path / "evidence.md"
    shown.write_text(
        "\n".join(f"<!-- {name}: begin -->\nNo line yet.\n<!-- {name}: end -->" for name in evidence.sections([]))
    )
    monkeypatch.setattr(table, "EVIDENCE", shown)
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    return tmp_path / "suite_some-cpu_202611.jsonl"


def write(path: Path, lines: list[Line]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells of a Markdown table."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


def test_committed_page_and_plots_are_current() -> None:
    assert not table.stale(), "run `python -m benchmarks.suite table`"


def test_page_without_lines_is_marked_not_measured(results: Path) -> None:
    assert table.main(check=False) == 0 and table.main(check=True) == 0
    text = table.PAGE.read_text()
    assert text.count(markdown.NOTHING) == 8 and text.count("**not measured**") == 10  # eight rows, two claims in parts
    assert not table.PLOTS.exists() and table.headline() == markdown.NOTHING


def test_stale_page_is_found_and_rewritten(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_plots_of_removed_lines_are_removed(results: Path) -> None:
    write(results, suite())
    table.main(check=False)
    results.unlink()
    assert table.main(check=True) == 1
    table.main(check=False)
    assert list(table.PLOTS.iterdir()) == [] and table.main(check=True) == 0


def test_page_without_marker_is_an_error() -> None:
    with pytest.raises(ValueError, match="lacks the markers <!-- methods: begin -->"):
        table.page("no markers", [], [])


def test_table_of_methods_by_target() -> None:
    (board,) = table.reported_boards(suite())
    cells = rows(markdown.methods(board))
    # weighted: 46, 49, 52 on every target; the random control: (40 + 44) / 2 and one point more per seed
    assert cells["`weighted`"] == ["49.0", *["49.0 ± 3.0"] * 3, "3", "51"]
    assert cells["`random`"] == ["43.0", *["43.0 ± 1.0"] * 3, "3", "-"]
    assert "single" not in markdown.methods(board)
    order = [name for name in cells if name.startswith("`")]
    assert order[:4] == ["`adapted`", "`weighted`", "`oracle nearest`", "`static best`"]
    assert order[6:] == ["`fixmatch`", "`transfer`"]  # nearest and random tie


def test_balanced_accuracy_has_its_own_board() -> None:
    (board,) = table.reported_boards(suite(), "balanced_accuracy")
    assert rows(markdown.methods(board))["`weighted`"][0] == "39.0"


def test_table_of_claims() -> None:
    (board,) = table.reported_boards(suite(targets=6))
    text = markdown.claims(board)
    cells = rows(text)
    assert [name.split(".")[0] for name in list(cells)[2:]] == ["1", "2", "3a", "3b", "4", "5a", "5b", "6"]
    # 6, 8, 10 points on each of six targets: mean 8, all flips of six means: p = 2 / 64
    least, mean, above, p, wins, targets, seeds, verdict = cells["1. weighted over transfer"]
    assert (least, above, p, wins, targets, seeds) == ("5.6", "100 % of draws", "0.031", "6 (6)", "6", "3")
    assert mean.startswith("+8.0 [+7.") and verdict == "**holds**"
    # both 2 points above transfer, up to the last bit of a float
    _, mean, above, p, *_, verdict = cells["2. nearest over a random source"]
    assert (mean, above, p, verdict) == ("+0.0 [+0.0, +0.0]", "0 % of draws", "1.000", "**fails**")
    assert cells["3a. weighted beside nearest"][::7] == ["at least as good (margin 1.0)", "**holds**"]
    assert cells["3b. weighted beside equal"] == ["at least as good (margin 1.0)", *["-"] * 6, "**not measured**"]
    # adapted has 10, weighted 6, 8, 10
    assert cells["6. best beyond the paper over weighted (`adapted`)"][-1] == "**smaller than claimed**"
    # as good as static: two decimals for Spearman, one for points
    assert cells["5a. similarity's Spearman over the static ranker's (`right`)"][1] == "+0.00 [+0.00, +0.00]"
    assert cells["5b. similarity's regret under the static ranker's (`right`)"][1] == "+0.0 [+0.0, +0.0]"
    assert text.endswith("all of them do: claim 3: **not measured**; claim 5: **fails**.")


def test_differences_that_are_not_claims_have_no_verdict() -> None:
    (board,) = table.reported_boards(suite(targets=6))
    text = markdown.unclaimed(board)
    cells = rows(text)
    assert cells["difference"] == [
        "mean of targets [95 %]",
        "over 0 in",
        "p",
        "targets won (clearly)",
        "targets",
        "seeds",
    ]
    assert cells["nearest over transfer"] == ["+2.0 [+2.0, +2.0]", "100 % of draws", "0.031", "6 (6)", "6", "3"]
    assert cells["stacked over adapted"] == ["-"] * 6
    # adapted 50, 51, 52; the probe of a 50 in every draw
    assert cells["best beyond the paper over the best source's probe (`adapted`)"][0].startswith("+1.0 [+0.")
    assert "on the unlabeled images" in text and not any(word in text for word in ("**", *contrasts.WORST_FIRST))


def test_table_of_pairs_by_target() -> None:
    (board,) = table.reported_boards(suite())
    # mean 8, deviation 2, t(0.975, 2) = 4.302653: 8 +- 4.302653 * 2 / sqrt(3) = 8 +- 4.968
    assert rows(markdown.per_target(board))["1. weighted over transfer"] == ["+8.0 [+3.0, +13.0], p 0.250, n 3"] * 3


def test_table_of_similarity_names_source_of_truth() -> None:
    (board,) = table.reported_boards(suite())
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
    without_singles = [line for line in suite() if not line.get("method", "").startswith("single:")]
    (probe_board,) = table.reported_boards(without_singles)
    assert "linear probes of the sources: target0" in markdown.similarity(probe_board)
    assert rows(markdown.similarity(probe_board))["wrong"][1] == "0.0 [0.0, 0.0]"  # by the probes, a is better


def test_table_of_ceilings_names_images() -> None:
    (board,) = table.reported_boards(suite())
    # transfer 41 on the mean, the ensemble 30; in balanced accuracy 31 and 90
    cells = rows(markdown.ceilings(board))
    assert cells["target"] == [
        "student, `transfer` (test)",
        "student, `weighted` (test)",
        "student, `adapted` (test)",
        "best source's probe (unlabeled)",
        "ensemble, `adapted` (unlabeled)",
    ]
    assert cells["target0"] == ["41.0 ± 1.0", "49.0 ± 3.0", "51.0 ± 1.0", "50.0 ± 0.0 (a)", "30.0 ± 0.0"]
    (balanced_board,) = table.reported_boards(suite(), "balanced_accuracy")
    assert rows(markdown.ceilings(balanced_board))["target0"][-1] == "90.0 ± 0.0"


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
def test_unfinished_suite_has_a_page(results: Path, lines: list[Line]) -> None:
    write(results, lines)
    text = table.stale()[table.PAGE]
    assert text is not None and "nan" not in text and "inf" not in text
    assert "**not measured**" in text


def test_mean_over_part_of_targets_is_marked() -> None:
    (board,) = table.reported_boards([run("x", "weighted", 0, 0.5), run("y", "transfer", 0, 0.25)])
    assert rows(markdown.methods(board))["`weighted`"] == ["50.0 (1 of 2 targets)", "50.0", "-", "1", "51"]


def test_lines_left_out_are_counted() -> None:
    later = run("x", "weighted", 0, 0.5, config="new", measured="2026-12-01T00:00:00Z")
    (board,) = table.reported_boards([run("x", "weighted", 0, 0.4), run("x", "weighted", 1, 0.4), later])
    assert markdown.methods(board).endswith("2 lines of older configurations left out.")


def test_tuning_packs_are_in_no_table() -> None:
    profile = protocol.load("cpu")
    tuning_pack, fields = profile.tuning[0], {"profile": "cpu", "config": profile.config("transfer")}
    lines = [run("x", "transfer", 0, 0.5, **fields), run(tuning_pack, "transfer", 0, 0.5, **fields)]
    (board,) = table.reported_boards(lines)
    assert board.targets == ["x"]
    (board_without_profile,) = table.reported_boards([run(tuning_pack, "transfer", 0, 0.5, profile="unknown")])
    assert board_without_profile.targets == [tuning_pack]


def test_headline_lists_methods_of_profile(results: Path) -> None:
    write(results, suite())
    cells = rows(table.headline(PROFILE))
    assert cells["`transfer`"] == ["-", "41.0", "-", "-", "3"]
    assert cells["`weighted`"][1] == "49.0" and cells["`weighted`"][3:] == ["3 of 3", "3"]
    assert "`oracle nearest`" not in cells
    assert table.headline("gpu") == markdown.NOTHING
    assert list(rows(table.headline(PROFILE, only=("weighted",))))[2:] == ["`weighted`"]


def test_row_of_the_default_is_called_auto() -> None:
    assert markdown.recipe_names("cpu", "selftrained") == ("`auto`", "`adapted`, teacher `selftrained`")
    assert markdown.recipe_names("cpu", "adapted") == ("`adapted`", "`adapted`, teacher `similarity`")
    assert markdown.recipe_names("cpu", "weighted-long") == ("`weighted-long`", "`weighted`, steps 1200")


def test_plots_are_reproducible_and_have_their_hash() -> None:
    (board,) = table.reported_boards(suite())
    first, second = figures.draw(board), figures.draw(board)
    assert first == second and set(first) == {"differences_made.svg", "regret_made.svg"}
    svg = first["differences_made.svg"]
    assert len(figures.values_hash(svg)) == 64 and len(svg) < 60_000
    assert ">weighted</text>" in svg and ">target2</text>" in svg and "dc:date" not in svg
    newer = run("target0", "adapted", 0, 0.9, measured="2026-12-01T00:00:00Z")
    (changed_board,) = table.reported_boards([*suite(), newer])
    assert figures.values_hash(figures.draw(changed_board)["differences_made.svg"]) != figures.values_hash(svg)
    assert figures.values_hash("<svg/>") == ""


def test_natural_draws_are_in_their_section_alone(results: Path) -> None:
    profile = protocol.load("cpu_natural")
    gains = {"transfer": 0.0, "auto": 0.01, "auto-shares": 0.06, "transfer-shares": 0.02}
    write(
        results,
        [
            run(target, method, 0, 0.5 + gain, profile=profile.name, config=profile.config(method))
            for target in profile.targets
            for method, gain in gains.items()
        ],
    )
    assert table.main(check=False) == 0 and table.main(check=True) == 0
    before, _, after = table.PAGE.read_text().partition("<!-- natural: begin -->")
    assert "auto-shares" not in before and not table.PLOTS.exists()
    by_claim = rows(after.partition("<!-- natural: end -->")[0].partition("A claim in parts")[0])
    assert by_claim["N1. auto with the shares over auto"][1] == "+5.0 [+5.0, +5.0]"
    assert by_claim["N1. auto with the shares over auto"][-1] == "**holds**"
    assert by_claim["N3. auto over transfer, both with the shares"][-1] == "**smaller than claimed**"
    assert by_claim["N2. auto with its labels' prior over auto"][-1] == "**not measured**"


def test_further_targets_are_in_their_section_alone(results: Path) -> None:
    profile = protocol.load("confirm_cifar100")
    config = profile.config("auto-ridge")
    old = run("cifar100-b", "auto-ridge", 0, 0.9, profile=profile.name, config="of other settings")
    write(results, [run("cifar100-a", "auto-ridge", 0, 0.6, profile=profile.name, config=config), old])
    assert table.main(check=False) == 0 and table.main(check=True) == 0
    before, _, after = table.PAGE.read_text().partition("<!-- confirm: begin -->")
    assert "auto-ridge" not in before and not table.PLOTS.exists()
    top1 = after.partition("<details>")[0]  # of one target: the other line is not current
    assert rows(top1)["`auto-ridge`"][:2] == ["60.0", "60.0"]
