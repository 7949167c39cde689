"""Keys that a YAML file gives twice: PyYAML keeps the last one and says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from edgedistill.recipe.options import Key, Problem

MERGE, DEFAULT_VALUE = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value"


def duplicates(node: yaml.Node | None) -> list[Problem]:
    """Find the keys that are given twice, at any depth of a composed document that PyYAML can also construct.

    Keys are compared as they are constructed: `1` and `"1"` are two keys, `yes` and `true` are the same. A key beside
    a merge key (`<<`) that brings it too is an override, not a duplicate.
    """
    return list(_duplicates(node, (), set()))


def _duplicates(node: yaml.Node | None, path: Key, visited: set[int]) -> Iterator[Problem]:
    if node is None or id(node) in visited:  # an alias is the node of its anchor
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, entry_node in enumerate(node.value):
            yield from _duplicates(entry_node, (*path, index), visited)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[Any, int] = {}
        for name_node, entry_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):  # a list or a mapping is no key for PyYAML
                continue
            key, line, identity = (*path, name_node.value), name_node.start_mark.line + 1, _identity(name_node)
            if identity in first_lines:
                message = f"is given twice (first on line {first_lines[identity]})"
                yield Problem(key=key, message=message, line=line)
            first_lines.setdefault(identity, line)
            # what is merged in place belongs to the mapping around it
            yield from _duplicates(entry_node, path if name_node.tag == MERGE else key, visited)


def _identity(node: yaml.ScalarNode) -> Any:
    """The key that PyYAML constructs; its special keys `<<` and `=`, which have no value of their own, as pairs."""
    if node.tag in (MERGE, DEFAULT_VALUE):
        return node.tag, node.value
    return yaml.SafeLoader("").construct_object(node)
