"""What the wording of a license says about commercial use.

The table repeats what the licenses themselves say; where a wording is not recognized the answer is "not stated".

- Licenses that the Open Source Initiative has approved allow every field of use (opensource.org/osd, clause 6).
- Creative Commons: "NonCommercial" forbids commercial use, "NoDerivatives" forbids to share what is made from the work,
  the others allow both (creativecommons.org/share-your-work/cclicenses).
- Open Data Commons, CDLA and the French Open License allow it (opendatacommons.org/licenses, cdla.dev, etalab.gouv.fr).
- OpenRAIL allows it if its restrictions of use are passed on; a RAIL for research does not allow it
  (licenses.ai/blog/2022/8/18/naming-convention-of-responsible-ai-licenses).
- DINOv3, NVIDIA Open Model and Gemma allow it under their own conditions (ai.meta.com/resources/models-and-libraries/
  dinov3-license, nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license, ai.google.dev/gemma/terms).
- Apple's sample code license, and those of FastViT and CVNets with the same text, allow to use, modify and redistribute
  (github.com/apple/ml-fastvit/blob/main/LICENSE); Apple's AMLR is for research alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgedistill.records import Commercial

NOT_STATED: Commercial = "not stated"
OWN = "own"  # a recipe's word for what nobody else has rights in
# an overall answer is the first of these that any input gives
ORDER: tuple[Commercial, ...] = ("no", NOT_STATED, "with conditions", "yes")
# SPDX identifiers and usual names, as `_normalized` writes them, without their versions
YES = frozenset(
    {
        *("mit", "expat", "apache", "apache-software", "isc", "zlib", "unlicense", "wtfpl", "0bsd", "bsl-1.0"),
        *("bsd", "new-bsd", "modified-bsd", "simplified-bsd", "bsd-2-clause", "bsd-3-clause", "bsd-4-clause"),
        *("2-clause-bsd", "3-clause-bsd", "bsd-3-clause-clear", "ncsa", "postgresql", "upl", "psf", "python"),
        *("gpl", "lgpl", "agpl", "general-public", "lesser-general-public", "affero-general-public"),
        *("mpl", "mozilla-public", "epl", "eclipse-public", "eupl", "cddl", "osl", "afl", "artistic", "ecl", "ofl"),
        *("cc-by", "cc-by-sa", "cc0", "cc-0", "public-domain", "cc0-1.0-universal-public-domain-dedication"),
        *("creative-commons-attribution", "creative-commons-attribution-sharealike", "creative-commons-zero"),
        *("odc-by", "odbl", "pddl", "cdla-permissive", "cdla-sharing", "etalab"),
        *("apple-ascl", "apple-sample-code", "fastvit", "cvnets", OWN),
    }
)
CONDITIONS = frozenset(
    {
        "dinov3",
        "nvidia-open-model",
        "gemma",
        "bigscience-bloom-rail",
        "cc-by-nd",
        "creative-commons-attribution-noderivs",
    }
)
FORBIDDEN = re.compile(
    r"non-?commercial|not-for-commercial|\bcc-?by(-[a-z]+)*-nc\b|apple-(amlr|machine-learning-research)"
    r"|research-?(use|only|rail|purposes)|(only|exclusively)-for-(\w+-)?research|(academic|personal)-(use|purposes)"
)
BOTH = re.compile(r"\bcommercial-(and|or)-non-?commercial|non-?commercial-(and|or)-commercial")  # forbids neither
VERSION = re.compile(
    r"(-license)?,?-?v?(ersion-)?\d+(\.\d+)*(-international|-universal|-unported|-only|-or-later|\+|-[a-z]{2})?$"
)
PART_ONLY = re.compile(r"\b(only|code|except|but|not|other|unless)\b")


def commercial(licence: str) -> Commercial:
    """What a license's name, an SPDX expression or the text of a license says about commercial use.

    The first line of a text is the license's name. Of an expression with AND every part counts, of one with OR the most
    permissive; beside parentheses OR counts as AND.
    """
    first, *others = [line for line in licence.splitlines() if line.strip()] or [""]
    if re.search(r"\(.*\b(AND|OR)\b.*\)", first):
        first = first.replace(" OR ", " AND ")
    alternatives = [re.split(r"\s+AND\s+", part) for part in re.split(r"\s+OR\s+", first)]
    answer = max((overall(map(_by_name, names)) for names in alternatives), key=ORDER.index)
    forbidden = answer == NOT_STATED and FORBIDDEN.search(_normalized(" ".join(others)))
    return "no" if forbidden else answer


def overall(answers: Iterable[Commercial]) -> Commercial:
    """The answer for what is made of several inputs: the most restrictive one; "yes" if there is no input."""
    return min(answers, key=ORDER.index, default="yes")


def _by_name(name: str) -> Commercial:
    if FORBIDDEN.search(BOTH.sub("", _normalized(name))):
        return "no"
    spdx_id = re.sub(r"\s+WITH\s+\S+", "", name).strip("() \t")
    bare, _, remark = spdx_id.partition("(")
    if PART_ONLY.search(remark):  # "MIT (code only)" says nothing about the rest
        return NOT_STATED
    forms = {_normalized(bare), VERSION.sub("", _normalized(bare))}
    if forms & YES:
        return "yes"
    return "with conditions" if forms & CONDITIONS or re.search("open-?rail", _normalized(bare)) else NOT_STATED


def _normalized(name: str) -> str:
    """Lower case, with "-" between words, without "the", "GNU" and "license" around the name."""
    words = re.sub(r"[\s_/-]+", "-", name.lower().replace("licence", "license")).strip("-.,;:")
    return re.sub(r"^(the-)?(gnu-)?|-license(-agreement)?$", "", words)
