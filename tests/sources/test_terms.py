"""What licenses say about commercial use: usual wordings by hand, and how several of them combine."""

from __future__ import annotations

import pytest

from edgedistill.records import Commercial
from edgedistill.sources.terms import commercial, overall

WORDINGS: dict[Commercial, tuple[str, ...]] = {
    "yes": (
        *("MIT", "MIT License", "The MIT License (MIT)", "apache-2.0", "Apache License, Version 2.0", "Apache 2.0"),
        *("BSD", "3-Clause BSD License", "bsd-3-clause", "GPLv3", "GPL-3.0-only", "LGPL-2.1-or-later", "BSL-1.0"),
        *("CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)", "CC-BY-SA-4.0", "cc-by-3.0-us", "CC0-1.0"),
        *("Creative Commons Attribution 4.0 International", "odbl", "CDLA-Permissive-2.0", "apple-ascl", "own"),
        *("GNU General Public License v3 (GPLv3)", "Apache-2.0 WITH LLVM-exception AND BSD-2-Clause"),
        "GNU GENERAL PUBLIC LICENSE\nVersion 2\nallowed only for noncommercial distribution",
        "MIT OR CC-BY-NC-4.0",
    ),
    "no": (
        *("CC BY-NC-SA 4.0", "cc-by-nc-4.0", "CC-BY-NC-ND-3.0", "Creative Commons Attribution-NonCommercial 4.0"),
        *("fair-noncommercial-research-license", "Research only", "for academic use only", "apple-amlr"),
        *("CC-BY-NC-SA-4.0 AND Apache-2.0", "(MIT OR CC-BY-NC-4.0) AND MIT", "AIPubs Research-Use RAIL-M"),
        *("MIT for the code, weights non-commercial", "Terms\nThe weights may be used for research purposes alone."),
    ),
    "with conditions": ("creativeml-openrail-m", "openrail++", "dinov3-license", "CC-BY-ND-4.0", "gemma"),
    "not stated": (
        *("", "unknown", "other", "none", "not stated: images of your own", "see torchvision's CIFAR10", "MITRE"),
        *("MIT (code only)", "not MIT", "MIT-style", "BSL-1.1", "CC BY 4.0 but no selling", "UNKNOWN", "\n"),
        *("for commercial and non-commercial use", "seer-license"),
    ),
}


@pytest.mark.parametrize(("answer", "licence"), [(answer, text) for answer in WORDINGS for text in WORDINGS[answer]])
def test_wording_is_understood(answer: Commercial, licence: str) -> None:
    assert commercial(licence) == answer


def test_most_restrictive_input_decides() -> None:
    assert overall(["yes", "with conditions", "not stated", "no"]) == "no"
    assert overall(["yes", "with conditions", "not stated"]) == "not stated"
    assert overall(["yes", "with conditions"]) == "with conditions"
    assert overall(["yes"]) == overall([]) == "yes"
