"""Changes of bytes, of text and of trees, each drawn by a `Random`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.kind import CANARY

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63)
COMMANDS = tuple(
    text.replace("CANARY", CANARY)
    for text in (
        "$(touch CANARY)",
        "`touch CANARY`",
        "; touch CANARY",
        "'; touch CANARY; '",
        '"; touch CANARY; "',
        "| touch CANARY",
        "&& touch CANARY",
        "a\ntouch CANARY",
        "-oProxyCommand=touch CANARY",
        "--rsh=touch CANARY",
        "pipe:touch CANARY",
        "!touch CANARY",
        "${IFS}touch${IFS}CANARY",
        "__import__('os').system('touch CANARY')",
    )
)
PLACES = (
    "../../x",
    "/etc/passwd",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "~",
    "~nobody/x",
    "~root",
    ".",
    "..",
    "/",
)
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\n",
        "a\nb",
        "\t",
        "\r",
        "\x1b[31mred",
        "\x7f",
        "\u0085",
        "\u2028",
        "\ufeff",
        "\u202egnp",
    ),
    *("\ud800", "\udcff", "İ", "ß", "é", "e\u0301", "名", "a" * 300, "x" * 20_000, "9" * 5_000, "NaN", "null", "-1"),
    *(
        "%s%n%x",
        "{0}",
        "{{}}",
        "{1..3}",
        "{a,b}{c,d}",
        "{1..99999999999}",
        "{1..9}" * 12,
        "%00",
        "a:b",
        "a#b",
        "*",
        "[a]",
    ),
)
NUMBERS = (
    *(0, -1, 1, 2, 7, 255, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(math.inf, -math.inf, math.nan),
)


def mangled(random: Random, content: bytes) -> bytes:
    """Bytes with one to six changes: flipped bits, other numbers, parts left out, doubled, exchanged, cut off."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        random.choice(BYTE_CHANGES)(random, changed)
    return bytes(changed)


def _flip(random: Random, content: bytearray) -> None:
    if content:
        content[_position(random, content)] ^= 1 << random.randrange(8)


def _replace(random: Random, content: bytearray) -> None:
    if content:
        content[_position(random, content)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _number(random: Random, content: bytearray) -> None:
    width, start = random.choice((2, 4, 8)), _position(random, content)
    number = random.choice(INTERESTING) % (1 << 8 * width)
    content[start : start + width] = number.to_bytes(width, random.choice(("little", "big")))


def _leave_out(random: Random, content: bytearray) -> None:
    start = _position(random, content)
    del content[start : start + random.choice((1, 2, 4, 16, 100))]


def _double(random: Random, content: bytearray) -> None:
    start, length = _position(random, content), random.choice((1, 4, 16, 100))
    content[start:start] = content[start : start + length] * random.choice((1, 2, 50))


def _exchange(random: Random, content: bytearray) -> None:
    length, one_start, other_start = random.choice((1, 4, 16)), _position(random, content), _position(random, content)
    part = content[one_start : one_start + length]
    content[one_start : one_start + length] = content[other_start : other_start + length]
    content[other_start : other_start + length] = part


def _insert(random: Random, content: bytearray) -> None:
    start = _position(random, content)
    content[start:start] = random.randbytes(random.choice((1, 2, 8, 64)))


def _cut(random: Random, content: bytearray) -> None:
    del content[_position(random, content) :]


def _erase(random: Random, content: bytearray) -> None:
    start = _position(random, content)
    part = content[start : start + random.choice((4, 16, 100))]
    content[start : start + len(part)] = bytes(len(part))


BYTE_CHANGES: tuple[Callable[[Random, bytearray], None], ...] = (
    *(_flip, _flip, _replace, _replace, _number, _number, _leave_out, _double, _exchange, _insert, _cut, _erase),
)


def _position(random: Random, content: bytearray) -> int:
    """A place in the content: half of them in its first hundred bytes, where the headers are."""
    return random.randrange(len(content[:100]) if random.random() < 0.5 else len(content)) if content else 0


def leaf(random: Random) -> Any:
    """A value that is seldom meant: an odd text, number or path, or a command."""
    return random.choice(
        (
            *(random.choice(TEXTS), random.choice(NUMBERS), random.choice(COMMANDS), random.choice(PLACES)),
            *(None, True, False, [], {}, random.randrange(100), random.random()),
        )
    )


def near(random: Random, node: Any, words: Sequence[Any]) -> Any:
    """A value like another one, which may well be valid."""
    if isinstance(node, bool):
        return not node
    if isinstance(node, int):
        return random.choice((node + 1, node - 1, 2 * node, 10 * node, random.randrange(1, 50), str(node)[:400]))
    if isinstance(node, float):
        return random.choice((node / 2, 2 * node, random.random(), f"{node:.3g}", -node))
    if isinstance(node, list | dict):
        return random.choice((node, [], [node], node))
    return random.choice(words) if words else leaf(random)


def changed_tree(random: Random, tree: Any, words: Sequence[Any] = ()) -> Any:
    """A copy of nested mappings and lists with one to four changes; `words` are put in as keys and values, too."""
    root = [copy.deepcopy(tree)]
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _change_node(random, root, words)
    return root[0]


def _change_node(random: Random, root: list[Any], words: Sequence[Any]) -> None:
    nodes = list(_nodes(root, 0))
    parent, key = random.choice(nodes)
    other_parent, other_key = random.choice(nodes)
    node = parent[key]
    change = random.randrange(10)
    if change < 2:
        parent[key] = near(random, node, words)
    elif change < 4:
        parent[key] = random.choice(words) if words and random.random() < 0.3 else leaf(random)
    elif change == 4 and parent is not root:
        del parent[key]
    elif change == 5 and isinstance(node, dict):
        name = random.choice([*words, leaf(random)])
        node[name if isinstance(name, str | int | float | None) else "odd"] = leaf(random)
    elif change == 5 and isinstance(node, list):
        node.insert(random.randrange(len(node) + 1), leaf(random))
    elif change == 6:
        parent[key] = random.choice(([node], {"name": node}, [node, node], {str(key): node}, [[node]]))
    elif change == 7:
        parent[key] = copy.deepcopy(other_parent[other_key])
    elif change == 8 and isinstance(node, str) and node:
        place = random.randrange(len(node) + 1)
        parent[key] = node[:place] + random.choice((*TEXTS, *COMMANDS)) + node[place:]
    else:
        parent[key] = leaf(random)


def _nodes(parent: Any, depth: int) -> list[tuple[Any, Any]]:
    """(parent, key) of every node below `parent`."""
    keys = list(parent) if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else []
    pairs = []
    for key in keys:
        pairs.append((parent, key))
        if depth < 20:
            pairs += _nodes(parent[key], depth + 1)
    return pairs


def changed_text(random: Random, text: str, tokens: Sequence[str]) -> str:
    """Text with one to four changes: lines left out, doubled, exchanged or indented, tokens put in."""
    for _ in range(random.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        row, other = random.randrange(len(lines)), random.randrange(len(lines))
        change, line = random.randrange(8), lines[row]
        place = random.randrange(len(line) + 1)
        if change == 0:
            del lines[row]
        elif change == 1:
            lines.insert(other, line)
        elif change == 2:
            lines[row], lines[other] = lines[other], line
        elif change == 3:
            lines[row] = random.choice((" ", "  ", "\t", "- ", "? ")) + line
        elif change == 4:
            lines[row] = line[:place]
        else:
            lines[row] = line[:place] + random.choice(tokens) + line[place + random.choice((0, 0, 1, 5)) :]
        text = "\n".join(lines)
    return text
