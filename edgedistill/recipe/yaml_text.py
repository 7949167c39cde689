"""YAML as plain data, for recipes, settings of the command line and inventories: small, and never more than data.

PyYAML's safe loader constructs no objects, but it follows aliases without a bound (a kilobyte can stand for gigabytes),
raises errors of many types for a text that does not fit its tag, and passes on characters that no path can hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from edgedistill.recipe.duplicates import DEFAULT_VALUE, MERGE, duplicates
from edgedistill.recipe.options import Problem, shortened

MAX_CHARACTERS = 2_000_000
MAX_NODES = 50_000  # keys and values, those of an alias counted each time it is used
MAX_LEVELS = 40
INT64 = range(-(2**63), 2**63)
# control characters but tab and line feed, and halves of surrogate pairs: only escapes such as "\0" bring them
UNUSABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class YamlTextError(Exception):
    """What is wrong with the text, and its line if that is known."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True, kw_only=True)
class YamlText:
    """The plain data of a text, its nodes as written (None if it is empty), and its keys that are given twice."""

    plain: Any
    node: yaml.Node | None
    duplicates: tuple[Problem, ...]


def parse(text: str) -> YamlText:
    """Read a text as one YAML document.

    Raises:
        YamlTextError: it is not valid YAML, too long, nested too deeply, endless by its aliases, or holds a number or a
            character that cannot be used.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlTextError(
            f"longer than a file of settings can be: {len(text)} characters, and {MAX_CHARACTERS} are the most"
        )
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _Check().node(node)
        repeated = tuple(duplicates(node))
        return YamlText(plain=yaml.safe_load(text), node=node, duplicates=repeated)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = shortened(" ".join(str(getattr(error, "problem", None) or error).split()), 300)
        raise YamlTextError(f"not valid YAML: {reason}", mark.line + 1 if mark else None) from None
    except RecursionError:
        raise YamlTextError("not valid YAML: nested too deeply") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # from int(), datetime and others that PyYAML hands a text to, as that of `!!int {=: x}`
        raise YamlTextError(f"not valid YAML: {shortened(str(error), 300)}; quote what is meant as text") from None


class _Check:
    """Follows the nodes of a document once, and counts them as often as aliases repeat them."""

    def __init__(self) -> None:
        self.measures: dict[int, tuple[int, int]] = {}
        self.ancestors: set[int] = set()
        self.loader = yaml.SafeLoader("")

    def node(self, node: yaml.Node) -> tuple[int, int]:
        """The number of nodes at and below a node, and of its levels.

        Raises:
            YamlTextError: these are too many, or a text or a number cannot be used.
        """
        identity, line = id(node), node.start_mark.line + 1
        if identity in self.ancestors:
            raise YamlTextError("not valid YAML: an alias stands inside what it repeats", line)
        if identity in self.measures:
            return self.measures[identity]
        self.ancestors.add(identity)
        count, levels = 1, 1
        if isinstance(node, yaml.ScalarNode):
            self._scalar(node)
        else:
            for part in node.value:
                for child in part if isinstance(part, tuple) else (part,):
                    below, height = self.node(child)
                    count, levels = count + below, max(levels, height + 1)
        self.ancestors.discard(identity)
        if count > MAX_NODES:
            raise YamlTextError(f"more than {MAX_NODES} keys and values, with the aliases written out", line)
        if levels > MAX_LEVELS:
            raise YamlTextError("not valid YAML: nested too deeply", line)
        self.measures[identity] = count, levels
        return count, levels

    def _scalar(self, node: yaml.ScalarNode) -> None:
        line = node.start_mark.line + 1
        if unusable := UNUSABLE.search(node.value):
            raise YamlTextError(f"a text with the character {unusable[0]!a}; leave it out", line)
        if node.tag in (MERGE, DEFAULT_VALUE):
            return
        try:
            scalar = self.loader.construct_object(node)
        except yaml.YAMLError:
            raise
        except Exception as error:  # from int(), datetime and others that PyYAML hands the text to
            reason = shortened(str(error), 100)
            message = f"not valid YAML: {shortened(node.value)!r}: {reason}; quote what is meant as text"
            raise YamlTextError(message, line) from None
        if isinstance(scalar, int) and scalar not in INT64:
            raise YamlTextError(f"{shortened(node.value)} has more than 64 bits; quote what is meant as text", line)
