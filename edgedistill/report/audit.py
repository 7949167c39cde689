"""The page of an audit: a summary for the terminal, audit.json, and one self-contained audit.html with thumbnails.

The page is report.html's with other content, so style, policy and escaping are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgedistill.labels.findings import KINDS, Audit, AuditedImage, Finding
from edgedistill.labels.to_label import Suggestions
from edgedistill.report import plots
from edgedistill.report.blocks import Block, Row, clean, format_block, wrap
from edgedistill.run.files import atomic, write_record

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "audit.html"
SHOWN_SETS, SHOWN_IMAGES = 24, 8  # of a kind, and of a set
NAMED = 3  # findings of a kind that the terminal names
SINGLE = ("doubtful", "corrupt", "blank", "dark", "long", "small")  # kinds whose findings are one image each
NOTES = {
    "two-labels": "The same picture stands in two classes: one of the labels is wrong, or the classes overlap.",
    "copies": "The same pixels. Copies on two sides of a split make a student look better than it is.",
    "near-copies": "The same picture after compression, resizing, a small crop or another brightness.",
    "doubtful": "The class that the teacher sees instead, and its probability.",
    "corrupt": "They take no part in anything.",
    "blank": "One brightness everywhere.",
    "dark": "Nearly black.",
    "long": "The sides differ by a factor of four or more.",
    "small": "The shorter side has fewer pixels than the smallest student's input.",
}


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A picture of the page: a data URI, "" without one, and the lines below it."""

    uri: str
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pictures that belong together, and what is wrong with them."""

    note: str
    images: tuple[Thumbnail, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A kind of findings on the page; `hidden` says how many are not shown."""

    title: str
    note: str
    groups: tuple[Group, ...]
    hidden: str


def write(audit: Audit, images_NHWC: np.ndarray, folder: Path) -> Path:
    """Write audit.json and audit.html into a folder, each atomically; return the page's path.

    Args:
        audit: the findings.
        images_NHWC: the squares that the rows of the findings index, uint8 [N, px, px, 3].
        folder: is made if it is missing.
    """
    page = html(audit, images_NHWC)
    write_record(folder / "audit.json", audit)
    path = folder / TEMPLATE
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def text(audit: Audit) -> str:
    """The audit for a terminal: counts, and the worst findings by name."""
    lines = []
    for kind in KINDS:
        findings = audit.of_kind(kind)
        if findings:
            lines.append(f"{_count(kind, findings)}")
            lines += [wrap(_named(finding), "  ") for finding in findings[:NAMED]]
            more = len(findings) - NAMED
            lines += [f"  and {more} more"] if more > 0 else []
    blocks = [format_block(block) for block in _blocks(audit) if block.key != "findings"]
    notes = [wrap(f"note: {note}") for note in audit.notes]
    return sheet_text(audit.name, audit.source, _summary(audit), parts=(*blocks, "\n".join(lines), "\n".join(notes)))


def sheet_text(name: str, source: str, summary: str, *, parts: Sequence[str]) -> str:
    """A head and the parts that are not empty, for a terminal."""
    head = f"{name}  {source}\n\n{wrap(summary)}"
    return clean("\n\n".join(part for part in (head, *parts) if part)) + "\n"


def html(audit: Audit, images_NHWC: np.ndarray) -> str:
    """The audit as one self-contained HTML page: style and images are inline, and it loads nothing."""
    return sheet_html(
        TEMPLATE,
        audit,
        summary=_summary(audit),
        blocks=_blocks(audit),
        parts=[_part(audit, kind, images_NHWC) for kind in KINDS if audit.of_kind(kind)],
        licence=audit.licence,
    )


def sheet_html(
    template: str,
    record: Audit | Suggestions,
    *,
    summary: str,
    blocks: Sequence[Block],
    parts: Sequence[Part],
    licence: str = "",
) -> str:
    """A page of thumbnails about pictures of a data set."""
    rendered = page_template(template).render(
        title=record.name,
        about="",
        run_name=record.source,
        summary=summary,
        warnings=record.notes,
        blocks=blocks,
        pictures={},
        parts=parts,
        license=licence,
    )
    return clean(rendered)


def page_template(name: str) -> Template:
    """A template of this folder that extends report.html; it escapes what is put into it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _summary(audit: Audit) -> str:
    unlabeled = sum(audit.counts.get("", {}).values())
    classes = len(audit.counts) - ("" in audit.counts)
    without = f", {unlabeled:,} of them without a label" if unlabeled else ""
    counts = [_count(kind, audit.of_kind(kind)) for kind in KINDS if audit.of_kind(kind)]
    outcome = "; ".join(counts) if counts else "nothing was found"
    return f"{audit.images:,} images of {classes} classes{without}: {outcome}. It took {audit.seconds:.0f} s."


def _count(kind: str, findings: tuple[Finding, ...]) -> str:
    """How many findings of a kind there are: `Exact copies: 3 sets of 7 images, 1 in several splits`."""
    title = KINDS[kind]
    if kind in SINGLE:
        return f"{title}: {len(findings)}"
    images = sum(len(finding.images) for finding in findings)
    crossing = sum(finding.crosses for finding in findings)
    across = f", {crossing} in several splits" if crossing else ""
    return f"{title}: {len(findings)} {'set' if len(findings) == 1 else 'sets'} of {images} images{across}"


def _named(finding: Finding) -> str:
    names = [_place(image) for image in finding.images[:NAMED]]
    more = [f"{len(finding.images) - NAMED} more"] if len(finding.images) > NAMED else []
    note = f" ({finding.note})" if finding.note else ""
    return f"{', '.join([*names, *more])}{note}"


def _place(image: AuditedImage) -> str:
    return f"{image.split}: {image.name}" if image.split else image.name


def _blocks(audit: Audit) -> list[Block]:
    findings = Block(
        key="findings",
        title="Findings",
        header=("kind", "number", "images", "in several splits"),
        rows=tuple(_kind_row(audit, kind) for kind in KINDS),
        lines=(f"Labels: {audit.teacher}.",),
    )
    splits = list(dict.fromkeys(split for of_class in audit.counts.values() for split in of_class))
    classes = Block(
        key="classes",
        title="Classes",
        header=("class", *(split or "images" for split in splits)),
        rows=tuple(
            (name or "without a label", *(f"{of_class.get(split, 0):,}" for split in splits))
            for name, of_class in audit.counts.items()
        ),
    )
    sizes = ", ".join(f"{name} {size}" for name, size in audit.sizes.items())
    lines = (f"pixels: {sizes}",) if sizes else ()
    return [findings, classes, Block(key="sizes", title="Sizes", lines=(*lines, f"compared at {audit.px} px"))]


def _kind_row(audit: Audit, kind: str) -> Row:
    findings = audit.of_kind(kind)
    images = sum(len(finding.images) for finding in findings)
    crossing = "-" if kind in SINGLE else f"{sum(finding.crosses for finding in findings):,}"
    return KINDS[kind], f"{len(findings):,}", f"{images:,}", crossing


def _part(audit: Audit, kind: str, images_NHWC: np.ndarray) -> Part:
    findings = audit.of_kind(kind)
    shown, hidden = findings[:SHOWN_SETS], len(findings) - SHOWN_SETS
    if kind in SINGLE:
        images = [_thumbnail(finding.images[0], images_NHWC, finding.note) for finding in shown]
        groups = [Group(note="", images=tuple(images))]
    else:
        groups = [_group(finding, images_NHWC) for finding in shown]
    note = f"{NOTES[kind]} Checked by {audit.teacher}." if kind == "doubtful" else NOTES[kind]
    return Part(
        title=_count(kind, findings),
        note=note,
        groups=tuple(groups),
        hidden=f"{hidden} more are in audit.json" if hidden > 0 else "",
    )


def _group(finding: Finding, images_NHWC: np.ndarray) -> Group:
    more = len(finding.images) - SHOWN_IMAGES
    notes = [finding.note, f"{more} more images" if more > 0 else ""]
    return Group(
        note=", ".join(note for note in notes if note),
        images=tuple(_thumbnail(image, images_NHWC) for image in finding.images[:SHOWN_IMAGES]),
    )


def _thumbnail(image: AuditedImage, images_NHWC: np.ndarray, note: str = "") -> Thumbnail:
    uri = plots.jpeg(np.asarray(images_NHWC[image.row])) if image.row >= 0 else ""
    lines = (image.name, ", ".join(part for part in (image.label or "no label", image.split) if part), note)
    return Thumbnail(uri=uri, lines=tuple(line for line in lines if line))
