"""Messages are for a terminal: one line for each problem, whatever names and values a file holds."""

from __future__ import annotations

import pytest

from edgedistill.agent.job import AgentError
from edgedistill.errors import MAX_LINE, EdgeDistillError, InputError, printable


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a b é 名 \\n", "a b é 名 \\n"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x7f\x9b", r"\x1b[2J\x7f\x9b"),
        ("\udcff\ud800\u2028", r"\udcff\ud800\u2028"),
    ],
)
def test_control_characters_are_escaped(text: str, escaped: str) -> None:
    assert printable(text) == escaped
    assert str(EdgeDistillError(text, "fix it")) == f"{escaped}; fix it"
    assert str(InputError(str(EdgeDistillError(text)))) == escaped, "escaped once, however often it is passed on"


def test_several_problems_are_a_line_each() -> None:
    error = InputError(["a\nb", "c"], "fix it")
    assert str(error) == "a\\nb\nc; fix it" and error.message == "a\nb\nc"


def test_long_line_keeps_its_place_and_its_fix() -> None:
    line = str(InputError(f"file.csv:3: {'x' * 5000}", "close the quote"))
    assert len(line) < MAX_LINE and line.startswith("file.csv:3: x") and line.endswith("x; close the quote")


def test_agent_escapes_alike() -> None:
    assert str(AgentError("a\x1b[2J\nb\x7f")) == "a\\x1b[2J\nb\\x7f"
    long_text = str(AgentError(f"job.json: {'x' * 5000}; ship the bundle again"))
    assert len(long_text) < 1500 and long_text.endswith("x; ship the bundle again")
