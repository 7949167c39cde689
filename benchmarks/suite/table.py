"""The suite's page and plots, made from the committed lines and from nothing else.

python -m benchmarks.suite table            rewrite benchmarks/suite/README.md between its markers, and the plots
python -m benchmarks.suite table --check    exit 1 where they are not what the lines say
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.lines import read
from benchmarks.suite import board, markdown, plots, protocol, rankers
from benchmarks.suite.board import Board, Line

PAGE = Path(__file__).parent / "README.md"
PLOTS = Path(__file__).parent / "plots"
TUNING = "_tuning"  # a profile whose name ends so tries settings, on packs that are not reported
WORDS = {"top1": "top-1 accuracy", "balanced_accuracy": "balanced accuracy"}


def main(check: bool) -> int:
    """Rewrite the page and the plots, or only look; the exit code: 1 where `check` finds something not current."""
    outdated = stale()
    for path, wanted in outdated.items():
        print(f"{path.relative_to(PAGE.parent)}: not current")
        if check:
            continue
        if wanted is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted, encoding="utf-8")
    return 1 if check and outdated else 0


def stale() -> dict[Path, str | None]:
    """Files that are not what the committed lines say, with what they should be; None for one that should not exist."""
    lines = list(read("suite"))
    text = PAGE.read_text(encoding="utf-8")
    drawn = {PLOTS / name: svg for one in evidence(lines) for name, svg in plots.pictures(one).items()}
    wanted = page(text, lines, [path.name for path in drawn])
    found: dict[Path, str | None] = {PAGE: wanted} if wanted != text else {}
    found |= {path: svg for path, svg in drawn.items() if not _current(path, svg)}
    return found | {path: None for path in sorted(PLOTS.glob("*.svg")) if path not in drawn}


def _current(path: Path, svg: str) -> bool:
    return path.is_file() and plots.mark(path.read_text(encoding="utf-8")) == plots.mark(svg)


def evidence(lines: Iterable[Line], score: str = board.SCORES[0]) -> list[Board]:
    """The boards of all profiles, with the controls that follow from the students of single sources."""
    return [rankers.with_controls(one) for one in board.boards(reported(lines), score)]


def reported(lines: Iterable[Line]) -> list[Line]:
    """The lines that a profile as it stands would write: not those of its tuning packs, nor of older settings.

    Of a profile without a file, all.
    """
    known = [line for line in lines if not str(line.get("profile", "")).endswith(TUNING)]
    return [line for line in known if _current_line(line)]


def _current_line(line: Line) -> bool:
    name = str(line.get("profile", ""))
    if not (protocol.HERE / f"{name}.yaml").is_file():
        return True
    profile = _profile(name)
    kind = "draw" if line.get("kind") == "draw" else str(line.get("method", "")).partition(":")[0]
    known = kind == "draw" or kind in profile.methods
    return known and line.get("target") not in profile.tuning and line.get("config") == _config(name, kind)


@functools.cache
def _profile(name: str) -> protocol.Profile:
    return protocol.load(name)


@functools.cache
def _config(name: str, kind: str) -> str:
    return _profile(name).config("single:every" if kind == "single" else kind)


def settings(lines: Iterable[Line]) -> list[Line]:
    """The lines of the profiles in which settings were chosen."""
    return [line for line in lines if str(line.get("profile", "")).endswith(TUNING)]


def page(text: str, lines: Sequence[Line], pictures: Sequence[str]) -> str:
    """The page with every section rewritten; `pictures` are the file names of the plots.

    Raises:
        ValueError: a marker is missing.
    """
    from benchmarks.tables import rewritten  # which imports this module for the headline

    by_score = {score: evidence(lines, score) for score in board.SCORES}
    for name, table in markdown.SECTIONS.items():
        text = rewritten(text, name, section(table, by_score))
    trials = {score: board.boards(settings(lines), score) for score in board.SCORES}
    text = rewritten(text, "tuning", section(markdown.methods, trials))
    return rewritten(text, "plots", _shown(pictures))


def section(table: markdown.Section, by_score: dict[str, list[Board]]) -> str:
    """A table for every profile: the primary score in the open, the other folded."""
    primary, second = board.SCORES
    parts = [
        f"Profile `{first.profile}`, {WORDS[primary]}, %:\n\n{table(first)}\n\n"
        f"<details><summary>The same in {WORDS[second]}</summary>\n\n{table(other)}\n\n</details>"
        for first, other in zip(by_score[primary], by_score[second], strict=True)
    ]
    return "\n\n".join(parts) or table(Board(profile="", score=primary, runs=(), methods={}, draws={}, left_out=0))


def _shown(pictures: Sequence[str]) -> str:
    """The plots as images of the page."""
    alt = {"differences": "Points over transfer by target and method", "regret": "Regret of every ranker"}
    images = [
        f"![{alt[kind]}, profile {profile}](plots/{name})"
        for name in pictures
        for kind, _, profile in [name.removesuffix(".svg").partition("_")]
    ]
    return "\n\n".join(images) or markdown.NOTHING


def headline(profile: str = "cpu") -> str:
    """The short table of one profile for the project's README."""
    found = {one.profile: markdown.headline(one) for one in evidence(read("suite"))}
    return found.get(profile, markdown.NOTHING)
