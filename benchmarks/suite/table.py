"""The suite's page and plots, made from the committed lines alone.

python -m benchmarks.suite table            rewrite benchmarks/suite/README.md between its markers, and the plots
python -m benchmarks.suite table --check    exit 1 where they are not current
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.lines import read
from benchmarks.pages import replace_section
from benchmarks.suite import evidence, figures, markdown, natural, protocol, rankers
from benchmarks.suite.board import SCORES, Board, Line, boards

PAGE = Path(__file__).parent / "README.md"
PLOTS = Path(__file__).parent / "plots"
EVIDENCE = Path(__file__).parents[2] / "docs/evidence.md"
TUNING = "_tuning"  # suffix of profiles that try settings, on packs that are not reported
CONFIRMING = "confirm_"  # prefix of profiles with further targets, few to judge a claim by
WORDS = {"top1": "top-1 accuracy", "balanced_accuracy": "balanced accuracy"}


def main(check: bool) -> int:
    """Rewrite the page and the plots; with `check` write nothing, and return 1 where a file is not current."""
    outdated = stale()
    for path, current in outdated.items():
        print(f"{os.path.relpath(path, PAGE.parent)}: not current")
        if check:
            continue
        if current is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(current, encoding="utf-8")
    return 1 if check and outdated else 0


def stale() -> dict[Path, str | None]:
    """Files that are not current, with the text that each should have; None for a file that should not exist."""
    lines = list(read("suite"))
    text = PAGE.read_text(encoding="utf-8")
    drawn = [board for board in reported_boards(lines) if not natural.is_natural(board)]
    pictures = {PLOTS / name: svg for board in drawn for name, svg in figures.draw(board).items()}
    current = page(text, lines, [path.name for path in pictures])
    outdated: dict[Path, str | None] = {PAGE: current} if current != text else {}
    outdated |= {path: svg for path, svg in pictures.items() if not _current(path, svg)}
    shown = EVIDENCE.read_text(encoding="utf-8")
    renewed = evidence.page(shown, [board for score in SCORES for board in reported_boards(lines, score)])
    outdated |= {EVIDENCE: renewed} if renewed != shown else {}
    return outdated | {path: None for path in sorted(PLOTS.glob("*.svg")) if path not in pictures}


def _current(path: Path, svg: str) -> bool:
    return path.is_file() and figures.values_hash(path.read_text(encoding="utf-8")) == figures.values_hash(svg)


def reported_boards(lines: Sequence[Line], score: str = SCORES[0]) -> list[Board]:
    """The boards of all profiles, with the controls that are derived from the students of single sources."""
    return [rankers.with_controls(board) for board in boards(reported(lines), score)]


def reported(lines: Sequence[Line]) -> list[Line]:
    """The lines with a profile's present settings, without those of its tuning packs; all lines without such a file.

    Profiles for tuning, and those with further targets, are left out.
    """
    names = {str(line.get("profile", "")) for line in lines}
    judged = {name for name in names if not name.endswith(TUNING) and not name.startswith(CONFIRMING)}
    return [line for line in lines if str(line.get("profile", "")) in judged and _current_line(line)]


def _current_line(line: Line) -> bool:
    name = str(line.get("profile", ""))
    if not _has_file(name):
        return True
    profile = _profile(name)
    kind = "draw" if line.get("kind") == "draw" else str(line.get("method", "")).partition(":")[0]
    exists = kind == "draw" or kind in profile.methods
    return exists and line.get("target") not in profile.tuning and line.get("config") == _config(name, kind)


def _has_file(profile: str) -> bool:
    return (protocol.HERE / f"{profile}.yaml").is_file()


@functools.cache
def _profile(name: str) -> protocol.Profile:
    return protocol.load(name)


@functools.cache
def _config(name: str, kind: str) -> str:
    return _profile(name).config("single:every" if kind == "single" else kind)


def tuning_lines(lines: Iterable[Line]) -> list[Line]:
    """The lines of the profiles for tuning, in rows that these profiles have."""
    return [line for line in lines if str(line.get("profile", "")).endswith(TUNING) and _has_row(line)]


def _has_row(line: Line) -> bool:
    name = str(line["profile"])
    return not _has_file(name) or line.get("kind") == "draw" or line.get("method") in _profile(name).methods


def older_rows(trials: Sequence[Line]) -> dict[str, set[str]]:
    """Profile -> the rows whose newest line of a target has another configuration than the profile now gives."""
    newest = {(line["profile"], line["method"], line["target"]): line for line in trials if line.get("kind") == "run"}
    older: dict[str, set[str]] = {}
    for (name, method, _), line in newest.items():
        if _has_file(name) and line.get("config") != _config(name, method):
            older.setdefault(name, set()).add(method)
    return older


def _with_older(older: Mapping[str, set[str]], board: Board) -> str:
    """The table of a profile's rows, and which of them are of an older configuration."""
    rows = ", ".join(f"`{method}`" for method in sorted(older.get(board.profile, ())))
    note = (
        f"\n\nRows of an older configuration, such as an earlier version of the better start: {rows}." if rows else ""
    )
    return markdown.methods(board) + note


def confirming_lines(lines: Iterable[Line]) -> list[Line]:
    """The lines of the profiles with further targets, with their present settings."""
    return [line for line in lines if str(line.get("profile", "")).startswith(CONFIRMING) and _current_line(line)]


def page(text: str, lines: Sequence[Line], plot_names: Sequence[str]) -> str:
    """Rewrite every section of the page; `plot_names` are the file names of the plots.

    Raises:
        ValueError: a marker is missing.
    """
    every = {score: reported_boards(lines, score) for score in SCORES}
    by_score = {score: [board for board in every[score] if not natural.is_natural(board)] for score in SCORES}
    first = {score: [board for board in by_score[score] if board.profile not in evidence.CLAIMS] for score in SCORES}
    for name, table in markdown.SECTIONS.items():
        text = replace_section(text, name, section(table, by_score if name == "methods" else first))
    as_they_come = {score: [board for board in every[score] if natural.is_natural(board)] for score in SCORES}
    text = replace_section(text, "natural", section(natural.tables, as_they_come))
    trials = {score: boards(tuning_lines(lines), score) for score in SCORES}
    older = older_rows(tuning_lines(lines))
    text = replace_section(text, "tuning", section(functools.partial(_with_older, older), trials))
    further = {score: boards(confirming_lines(lines), score) for score in SCORES}
    text = replace_section(text, "confirm", section(markdown.methods, further))
    return replace_section(text, "plots", _images(plot_names))


def section(table: markdown.Section, by_score: dict[str, list[Board]]) -> str:
    """A table for every profile: the primary score open, the other one folded."""
    primary, second = SCORES
    parts = [
        f"Profile `{first.profile}`, {WORDS[primary]}, %:\n\n{table(first)}\n\n"
        f"<details><summary>The same in {WORDS[second]}</summary>\n\n{table(other)}\n\n</details>"
        for first, other in zip(by_score[primary], by_score[second], strict=True)
    ]
    return "\n\n".join(parts) or table(Board(profile="", score=primary, runs=(), methods={}, draws={}, left_out=0))


def _images(plot_names: Sequence[str]) -> str:
    """The plots as Markdown images."""
    alt = {"differences": "Points over transfer by target and method", "regret": "Regret of every ranker"}
    images = [
        f"![{alt[kind]}, profile {profile}](plots/{name})"
        for name in plot_names
        for kind, _, profile in [name.removesuffix(".svg").partition("_")]
        if kind in alt  # the plot of labels saved is in docs/evidence.md
    ]
    return "\n\n".join(images) or markdown.NOTHING


SHORT = ("selftrained", "weighted", "nearest", "transfer", "fixmatch")  # rows of the README


def headline(profile: str = "cpu", only: Collection[str] = ()) -> str:
    """The table of one profile's methods, or of some of them."""
    tables = {board.profile: markdown.headline(board, only) for board in reported_boards(list(read("suite")))}
    return tables.get(profile, markdown.NOTHING)
