"""YAML is read as plain data of a bounded size; what cannot be used is refused with its line."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from edgedistill.devices import inventory
from edgedistill.errors import InputError
from edgedistill.recipe import yaml_text
from edgedistill.recipe.file import MAX_PROBLEMS, RecipeError, read_recipe
from edgedistill.recipe.yaml_text import YamlTextError, parse
from edgedistill.session import bench_settings
from tests.recipe.test_recipe import GOOD, error_lines


def repeated(first: str, entry: str) -> str:
    """Twelve levels, each of nine aliases of the one before: a kilobyte for 9 ** 12 nodes."""
    levels = [f"b{n}: &b{n} {entry.format(', '.join([f'*b{n - 1}'] * 9), f'k{n}')}" for n in range(1, 13)]
    return "\n".join([f"b0: &b0 {first}", *levels, ""])


BOMBS = {
    "lists": repeated("[a]", "[{0}]"),
    "mappings": repeated("{a: b}", "{{{1}: [{0}]}}"),
    "merges": repeated("{a: b}", "{{<<: [{0}], {1}: 1}}"),
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_aliases_that_repeat_too_much_are_refused(tmp_path: Path, text: str) -> None:
    # the seventh level holds 9 ** 5 leaves and more; the lines count from 1
    with pytest.raises(YamlTextError, match="more than 50000 keys and values, with the aliases written out") as caught:
        parse(text)
    assert caught.value.line in (1, 5, 6, 7)
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"bomb\.yaml:\d: more than 50000 keys and values"):
        read_recipe(tmp_path / "bomb.yaml")
    with pytest.raises(InputError, match=r"bomb\.yaml:\d: more than 50000 keys and values"):
        inventory.load(tmp_path / "bomb.yaml")


def test_aliases_and_merges_are_read() -> None:
    content = parse("a: &a {b: 1, c: 2}\nd: {<<: *a, b: 3}\ne: [*a, *a]\n=: 4\nf: 2024-02-29\n")
    plain = {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}, "e": [{"b": 1, "c": 2}] * 2, "=": 4}
    assert content.plain == {**plain, "f": datetime.date(2024, 2, 29)} and content.duplicates == ()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: &x [*x]\n", 2, "not valid YAML: an alias stands inside what it repeats"),
        ("&x {a: *x}\n", 1, "not valid YAML: an alias stands inside what it repeats"),
        ("a: " + "[" * 30_000, None, "not valid YAML: nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, 1, "not valid YAML: nested too deeply"),
        ("a: 1\nb: !!int ''\n", 2, "not valid YAML: '': "),
        ("!!bool maybe: 1\n", 1, "not valid YAML: 'maybe': "),
        ("a: !!timestamp noon\n", 1, "not valid YAML: 'noon': "),
        ("a: !!int {=: ''}\n", None, "not valid YAML: "),
        ("a: 2024-99-99\n", 1, "not valid YAML: '2024-99-99': month must be in 1..12; quote what is meant as text"),
        ("a: !!binary 'é'\n", 1, "not valid YAML: "),
        ("a: !!python/object/apply:os.system [true]\n", 1, "not valid YAML: could not determine a constructor"),
        ('a: 1\nb: "x\\0"\n', 2, r"a text with the character '\x00'; leave it out"),
        ('a: "\\ud800"\n', 1, r"a text with the character '\ud800'; leave it out"),
        ('"\\e[31m": 1\n', 1, r"a text with the character '\x1b'; leave it out"),
        ("a: 1\nb: 9223372036854775808\n", 2, "9223372036854775808 has more than 64 bits; quote"),
        (f"a: 0x{'f' * 4000}\n", 1, "(4002 characters) has more than 64 bits; quote"),
        (f"a: {'9' * 5000}\n", 1, "not valid YAML: "),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(text: str, line: int | None, message: str) -> None:
    with pytest.raises(YamlTextError) as caught:
        parse(text)
    assert caught.value.line == line
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_long_text_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "MAX_CHARACTERS", 10)
    assert parse("a: 1234567").plain == {"a": 1234567}
    with pytest.raises(
        YamlTextError, match="longer than a file of settings can be: 11 characters, and 10 are the most"
    ):
        parse("a: 12345678")


def test_numbers_of_64_bits_tabs_and_line_ends_are_read() -> None:
    plain = {"a": 2**63 - 1, "b": -(2**63), "c": "x\ty\nz"}
    assert parse('a: 9223372036854775807\nb: -9223372036854775808\nc: "x\\ty\\nz"\n').plain == plain


def test_setting_of_the_command_line_is_refused_alike() -> None:
    with pytest.raises(InputError, match=r"--set bench\.inventory=.*: a text with the character '\\x00'; leave it out"):
        bench_settings(['bench.inventory="\\0"'])
    with pytest.raises(InputError, match=r"--set bench\.seconds=.*month must be in 1\.\.12"):
        bench_settings(["bench.seconds=2024-99-99"])


def test_values_in_messages_are_cut_off(tmp_path: Path) -> None:
    (line,) = error_lines(tmp_path, GOOD.replace("steps: 20", f"steps: {'x' * 5000}"))
    assert line.endswith(f"(got '{'x' * 79}... (5002 characters))")
    (line,) = error_lines(tmp_path, GOOD.replace("kind: folder", f"kind: {'x' * 5000}"))
    assert f"no data kind is called {'x' * 80}... (5000 characters); one of: csv" in line


def test_the_first_of_many_problems_are_listed(tmp_path: Path) -> None:
    text = GOOD + "".join(f"extra{number}: 1\n" for number in range(MAX_PROBLEMS + 1))
    lines = error_lines(tmp_path, text)
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == f"r.yaml: these are the first of more than {MAX_PROBLEMS} problems"
    assert len(error_lines(tmp_path, GOOD + "".join(f"extra{n}: 1\n" for n in range(MAX_PROBLEMS)))) == MAX_PROBLEMS


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("quantize: {targets: [[cpu]]}\n", "quantize.targets.0: input should be 'cpu' or 'tensorrt' (got ['cpu'])"),
        ("bench: {processes: 1001}\n", "bench.processes: input should be less than or equal to 1000"),
    ],
)
def test_odd_values_are_refused_by_the_schema(tmp_path: Path, section: str, message: str) -> None:
    text = GOOD + section
    assert any(message in line for line in error_lines(tmp_path, text)), error_lines(tmp_path, text)


def test_backend_of_a_latency_bound_may_be_of_any_type_in_a_message(tmp_path: Path) -> None:
    text = GOOD.replace("budget: {macs_m: 10}", "budget: {latency_ms: {at_most: 1, backend: [a]}}")
    assert any("latency_ms.backend: input should be a valid string" in line for line in error_lines(tmp_path, text))


def test_path_that_no_file_can_have_is_named(tmp_path: Path) -> None:
    lines = error_lines(tmp_path, GOOD.replace("root: pictures", f"root: {'é' * 128}"))
    assert [line for line in lines if "data.root: a name in a path has at most 255 bytes (got 'é" in line]
