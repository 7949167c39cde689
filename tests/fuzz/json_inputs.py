"""Hostile JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.fuzz.mutations import COMMANDS, PLACES, TEXTS, changed_text, changed_tree, mangled

TOKENS = (
    *(
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"',
        "\\",
        "NaN",
        "-Infinity",
        "Infinity",
        "null",
        "1e999",
        "-0",
        "0x1",
        "//",
        "/*",
    ),
    *('"\\u0000"', '"\\ud800"', "\\u", "1" * 5000, "'a'", "True", "\ufeff", "\0", "{}", "[[[[", "1.0", "1e3"),
    *(json.dumps(text) for text in (*COMMANDS, *PLACES, *TEXTS)),
)


def documents(key: str) -> list[bytes]:
    """Crafted documents: nested deeply, of another type, in other encodings, cut off."""
    texts = ["", "[]", "null", "{}", "3", '"a"', "NaN", "[" * 100_000, '{"a":' * 100_000, f'{{"{key}": {"9" * 6000}}}']
    texts += [
        f'{{"{key}": 1}}{{',
        f'{{"{key}": 1, "{key}": 2}}',
        "[" * 5000 + "]" * 5000,
        f'{{"{key}": {"x" * 10**6}}}',
    ]
    raw = [text.encode() for text in texts]
    raw += [json.dumps({key: "é"}).encode(code) for code in ("utf-16", "utf-32", "utf-8-sig", "latin-1")]
    return [*raw, b"\xff\xfe", b"\0" * 100, bytes(range(256))]


def made(random: Random, tree: Any, words: Sequence[Any]) -> bytes:
    """A document made from a valid one: as a tree, as text, or as bytes."""
    change = random.random()
    if change < 0.6:
        return json.dumps(changed_tree(random, tree, words), default=str).encode()
    text = json.dumps(tree, indent=1)
    if change < 0.9:
        return changed_text(random, text, TOKENS).encode("utf-8", "surrogatepass")
    return mangled(random, text.encode())
