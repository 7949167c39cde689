"""The records of an audit: what was found in a data set, image by image; plain data, written to audit.json."""

from __future__ import annotations

from dataclasses import dataclass

# what an audit looks for, the worst first, as titles of its page
KINDS = {
    "two-labels": "One picture with two labels",
    "copies": "Exact copies",
    "near-copies": "Near-copies",
    "doubtful": "Labels that a teacher contradicts",
    "corrupt": "Images that cannot be read",
    "blank": "Blank images",
    "dark": "Dark images",
    "long": "Very long images",
    "small": "Small images",
}


@dataclass(frozen=True, kw_only=True)
class AuditedImage:
    """An image by its name, its class ("" without a label) and its split; `row` is its place in the image store.

    `row` is -1 for an image that cannot be read.
    """

    name: str
    label: str
    split: str
    row: int = -1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One image, or a set of copies, with what is wrong; `kind` is a key of KINDS.

    `crosses` says whether a set of copies has images in several splits.
    """

    kind: str
    images: tuple[AuditedImage, ...]
    note: str
    crosses: bool = False


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The audit of a data set.

    Attributes:
        name: of the recipe or the folder.
        source: its path.
        licence: of the data.
        images: number of images, those that cannot be read included.
        counts: number of images by class ("" without a label) and split.
        sizes: what is known of the sizes in pixels, by name: the least, the median and the largest.
        findings: those of a kind together, the worst first.
        notes: what else a reader must know: what was left out, and what was not looked at.
        teacher: how the labels were checked.
        px: side of the stored squares in pixels.
        seconds: how long it took.
    """

    name: str
    source: str
    licence: str
    images: int
    counts: dict[str, dict[str, int]]
    sizes: dict[str, str]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    teacher: str
    px: int
    seconds: float

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """The findings of a kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)
