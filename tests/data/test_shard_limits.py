"""Shards that claim, or unpack to, more than there is: refused before they take memory or time."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from braceexpand import braceexpand

from edgedistill.data import shards
from edgedistill.errors import InputError
from edgedistill.recipe.data_section import Unlabeled


@pytest.mark.parametrize(
    "urls",
    [
        "{0..99999999999}.tar",
        "{0..9}" * 7,
        "{a,{0..9999}}{b,{0..9999}}",
        ["{1..600000}", "{1..600000}"],
        "{9..-1999999..2}",
    ],
)
def test_braces_that_stand_for_too_many_shards_are_refused_before_they_are_expanded(
    tmp_path: Path, urls: str | list[str]
) -> None:
    with pytest.raises(InputError, match=r"unlabeled\.urls: names more than 1000000 shards; check the numbers"):
        shards.addresses(Unlabeled(kind="wds", urls=urls), tmp_path)


@pytest.mark.parametrize(
    "pattern", ["{0..9}{a,b}.tar", "{00..10..5}-{9..0..3}", "a{b,{1..4}{x,y}}", r"a\{1..9\}{1,2}", "{c}"]
)
def test_addresses_are_counted_as_they_are_expanded(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(list(braceexpand(pattern)))
    monkeypatch.setattr(shards, "stamp", lambda path: "")
    monkeypatch.setattr(shards, "MAX_SHARDS", count)
    assert len(shards.addresses(Unlabeled(kind="wds", urls=pattern), tmp_path)) == count
    monkeypatch.setattr(shards, "MAX_SHARDS", count - 1)
    with pytest.raises(InputError, match="names more than"):
        shards.addresses(Unlabeled(kind="wds", urls=pattern), tmp_path)


def test_braces_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unlabeled\.urls: braces are nested too deeply"):
        shards.addresses(Unlabeled(kind="wds", urls="{" * 3000 + "}" * 3000), tmp_path)


def member(name: str, length: int, **headers: str) -> bytes:
    """The header of a file in a tar file, whatever size it claims."""
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = length, headers
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (member("a.png", 1 << 40), "a.png has 1099511627776 bytes, and 1073741824 are the most; leave it out"),
        # Python's tarfile goes on to the end that is claimed, for hours
        (member("a.txt", 3, size=str(10**14)) + bytes(512), "a.txt has 100000000000000 bytes, and 68719476736 are"),
        # two gigabytes of zeros in a sparse file of some bytes
        (
            member(
                "a.png", 512, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 31)}
            )
            + b"1\n0\n0\n".ljust(512, b"\0"),
            "a.png has 2147483648 bytes, and 1073741824 are the most",
        ),
    ],
    ids=["claimed", "skipped", "sparse"],
)
def test_file_that_is_too_large_for_a_picture_is_refused_unread(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    with pytest.raises(InputError, match=message):
        list(shards.samples(str(tmp_path / "a.tar")))
