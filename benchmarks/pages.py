"""Pages with generated sections: the text between a pair of markers is replaced, all other text is kept."""

from __future__ import annotations


def replace_section(text: str, name: str, section: str) -> str:
    """Return the page with `section` between the markers called `name`.

    Raises:
        ValueError: a marker is missing.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, opening, tail = text.partition(begin)
    _, closing, after = tail.partition(end)
    if not opening or not closing:
        raise ValueError(f"the page lacks the markers {begin} and {end}")
    return f"{before}{begin}\n{section}\n{end}{after}"
