"""Hostile YAML, for every file that is written in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import yaml

from tests.fuzz.kind import CANARY
from tests.fuzz.mutations import COMMANDS, PLACES, TEXTS, changed_text, changed_tree, mangled

# what PyYAML's constructors are given for the tag beside it: none of these fits
MISFITS = ('""', "x", "[a]", "{a: b}", "9" * 5000, "2024-99-99", "'***'", "-", "0001-01-01T00:00:00+23:59", "[[a, b]]")
TAGS = (
    "int",
    "float",
    "bool",
    "null",
    "timestamp",
    "binary",
    "set",
    "omap",
    "pairs",
    "str",
    "seq",
    "map",
    "merge",
    "value",
)
PYTHON_TAGS = (
    f'!!python/object/apply:os.system ["touch {CANARY}"]',
    f'!!python/object/new:os.system ["touch {CANARY}"]',
    f'!!python/object/apply:subprocess.Popen [["touch", "{CANARY}"]]',
    f"!!python/module:{CANARY}",
    "!!python/name:os.system",
    f"!!python/object/apply:builtins.eval [\"__import__('os').system('touch {CANARY}')\"]",
    "!!python/tuple [a]",
    "!!python/object:edgedistill.measurements.Device {}",
    "!odd x",
)
TOKENS = (
    *(
        "&a ",
        "*a",
        "*odd",
        "<<: *a",
        "<<: 3",
        "<<: [*a, *a]",
        "? ",
        "? [a]\n: b",
        "{",
        "}",
        "[",
        "]",
        ": ",
        ",",
        "- ",
        "#",
    ),
    *("|\n", ">\n", "'", '"', "%", "@", "`", "!", "!!", "---", "...", "%YAML 9.9\n---\n", "\t", "\0", "\ufeff", "\x85"),
    *("~", "yes", "=", "0x_", "0b", "1e999", ".nan", ".inf", "1:99:99", "2024-99-99", "\\ud800", '"\\0"', '"\\ud800"'),
    *(f"!!{tag} " for tag in TAGS),
    *(f"!!{tag} {misfit}" for tag in TAGS[:8] for misfit in MISFITS),
    *(*PYTHON_TAGS, *COMMANDS, *PLACES, *(text for text in TEXTS if text.isprintable() and len(text) < 400)),
)


def bombs(key: str) -> list[str]:
    """Small documents that are huge, or endless, once their aliases are followed; `key` is the one they stand at."""
    lists = "\n".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, 12))
    mappings = "\n".join(f"b{n}: &b{n} {{{', '.join(f'k{i}: *b{n - 1}' for i in range(9))}}}" for n in range(1, 12))
    merges = "\n".join(f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}], k{n}: 1}}" for n in range(1, 12))
    return [
        f"b0: &b0 [lol]\n{lists}\n{key}: *b11\n",
        f"b0: &b0 {{k: lol}}\n{mappings}\n{key}: *b11\n",
        f"b0: &b0 {{k: lol}}\n{merges}\n{key}: *b11\n",
        f"{key}: &a [*a]\n",
        f"{key}: &a {{b: *a}}\n",
        f"&a {{{key}: *a}}\n",
        f"{key}: &a {{<<: *a}}\n",
        f"{key}: {'[' * 20_000}\n",
        f"{key}: {'[' * 400}{']' * 400}\n",
        f"{key}: {'{a: ' * 20_000}\n",
        "".join(f"{' ' * depth}a:\n" for depth in range(2000)),
        f"{key}: {'- ' * 20_000}a\n",
        f"{key}: {'x' * 2_000_000}\n",
        f"{key}: {'1:' * 50_000}1\n",
        f"{key}: {'9' * 100_000}\n",
        f"{key}: {'&a ' * 5_000}x\n",
        f"{'? ' * 5_000}x\n",
        "".join(f"k{n}: {n}\n" for n in range(24_000)),
    ]


def documents(key: str) -> list[bytes]:
    """Crafted documents: bombs, tags that run Python or do not fit, encodings, and no mapping at all."""
    tagged = [f"{key}: {tag}\n" for tag in PYTHON_TAGS]
    misfits = [f"{place}: !!{tag} {misfit}\n" for tag in TAGS for misfit in MISFITS for place in (key, "? {}")]
    # as a key: "? !!tag x"
    texts = [*bombs(key), *tagged, *(text.replace("? {}: ", "? ") for text in misfits)]
    texts += [
        "",
        "\n",
        "a",
        "[]",
        "---\n---\n",
        "%TAG ! x\n--- !a\n",
        f"{key}: \t\n",
        f"? {{a: 1}}\n: {key}\n",
        "*a",
        "&a",
    ]
    raw = [text.encode() for text in texts]
    encoded = f"{key}: é\n"
    raw += [encoded.encode(code) for code in ("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "utf-7")]
    return [*raw, b"\0", b"\xff" * 100, b"PK\x03\x04", b"\x80\x04\x95", bytes(range(256))]


def made(random: Random, trees: Sequence[Any], words: Sequence[Any]) -> bytes:
    """A document made from one of the valid ones: as a tree, as text, or as bytes."""
    tree = random.choice(trees)
    change = random.random()
    if change < 0.55:
        return _dumped(random, changed_tree(random, tree, words)).encode("utf-8", "surrogatepass")
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    if change < 0.9:
        return changed_text(random, text, TOKENS).encode("utf-8", "surrogatepass")
    return mangled(random, text.encode())


def _dumped(random: Random, tree: Any) -> str:
    """A tree as block or flow YAML, or as JSON, whose escapes can bring any character."""
    if random.random() < 0.3:
        return json.dumps(tree, default=str)
    return str(
        yaml.safe_dump(tree, sort_keys=False, default_flow_style=random.choice((True, False, None)), width=1 << 30)
    )
