"""Walking folders of pictures: each real folder once, and without what systems and programs leave there.

Whatever is left out is counted, and said in a line each.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgedistill.data.listing import SUFFIXES
from edgedistill.errors import InputError
from edgedistill.run import artifacts
from edgedistill.run.directory import CACHE

Identity = tuple[int, int]  # device and inode of a folder

# made by NAS boxes, desktops, archivers, synchronizers and programmers' tools, never by who sorted the pictures
SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", ".@__thumb", "#recycle", "#snapshot", ".snapshot"),
        *(".recycle", "recycler", "recycled", "$recycle.bin", "system volume information", "lost+found", "found.000"),
        *("__macosx", ".appledouble", ".documentrevisions-v100", ".fseventsd", ".spotlight-v100", ".temporaryitems"),
        *(".thumbnails", ".thumbs", ".thumb", ".picasaoriginals", ".comments", ".xvpics", ".cache", ".local"),
        *(".ipynb_checkpoints", "__pycache__", "node_modules", ".venv", ".git", ".svn", ".hg", ".dvc", ".datalad"),
        *(".github", ".idea", ".vscode", ".huggingface", ".dropbox.cache", ".stfolder", ".stversions", ".sync"),
    }
)
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
MAX_SHOWN = 12  # suffixes in a line
MAX_EXAMPLES = 3


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name belongs to the system or to a program (`@eaDir`, `__MACOSX`, `.Trash-1000`)."""
    return name.casefold() in SYSTEM_FOLDERS or name.casefold().startswith(".trash")


def is_image(name: str) -> bool:
    """Whether a file of this name is read as a picture."""
    return Path(name).suffix.lower() in SUFFIXES


def shown(name: object) -> str:
    """A name as it stands in a message of one line: with line breaks and the like escaped."""
    text = str(name)
    return text if text.isprintable() else json.dumps(text)


def count_of(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class Level:
    """What lies directly in a folder.

    Attributes:
        folders: names of the folders, sorted.
        links: those of them that are symbolic links.
        images: names of the images, sorted.
        suffixes: number of other files by suffix.
        hidden_images: names of images that begin with a dot.
        hidden_folders: names of folders that begin with a dot.
        system_folders: names of folders of the system.
        specials: number of FIFOs, sockets and devices.
        is_run: whether it is a run directory of edgedistill.
    """

    folders: tuple[str, ...]
    links: frozenset[str]
    images: tuple[str, ...]
    suffixes: Counter[str]
    hidden_images: tuple[str, ...]
    hidden_folders: tuple[str, ...]
    system_folders: tuple[str, ...]
    specials: int
    is_run: bool


def read_level(folder: Path) -> Level:
    """List a folder.

    Raises:
        InputError: it cannot be read, or one of its symbolic links leads nowhere.
    """
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    links = set()
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                names[_kind(entry)].append(entry.name)
                if entry.is_symlink():
                    links.add(entry.name)
    except OSError as error:
        raise InputError(
            f"{shown(folder)}: cannot be read ({error.strerror})", "make it readable, or move it away"
        ) from None
    return Level(
        folders=tuple(names["folder"]),
        links=frozenset(links.intersection(names["folder"])),
        images=tuple(names["image"]),
        suffixes=Counter(Path(name).suffix.lower() for name in names["file"]),
        hidden_images=tuple(names["hidden image"]),
        hidden_folders=tuple(names["hidden folder"]),
        system_folders=tuple(names["system folder"]),
        specials=len(names["special"]),
        is_run=artifacts.LOCK.path in names["file"],
    )


KINDS = ("folder", "image", "file", "hidden image", "hidden folder", "system folder", "special", "nothing")


def _kind(entry: os.DirEntry[str]) -> str:
    """The kind of a folder's entry, one of KINDS; "nothing" is not worth a word.

    Raises:
        InputError: it is a symbolic link that leads nowhere.
    """
    name, hidden = entry.name, entry.name.startswith(".")
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
        lost = "" if is_folder or is_file or not entry.is_symlink() or Path(entry.path).exists() else "no such file"
    except OSError as error:  # a link to itself, or into a folder that cannot be read
        is_folder, is_file, lost = False, False, error.strerror or "cannot be followed"
    if lost and not hidden:  # hidden ones are locks of editors
        raise InputError(
            f"{shown(entry.path)}: is a symbolic link that leads nowhere ({lost})", "repair the link, or remove it"
        )
    if is_folder:
        return "system folder" if is_system_folder(name) else "hidden folder" if hidden else "folder"
    if hidden or name.casefold() in SYSTEM_FILES:
        return "hidden image" if is_image(name) and is_file else "nothing"
    if is_file:
        return "image" if is_image(name) else "file"
    return "special" if is_image(name) else "nothing"


def hidden_images(folder: Path) -> int:
    """Number of images at any depth in a folder that is not read; links to folders are not followed."""
    return sum(is_image(name) for _, _, names in os.walk(folder) for name in names)


@dataclass(kw_only=True)
class Walk:
    """The folders of a data set that were read, and to whom their images belong.

    Attributes:
        root: the data set's folder.
        apart: a folder whose images belong to no class, even where it lies in a class folder.
        levels: the contents of the folders by identity.
        paths: the path by which each was read first.
        owners: the class folder, or the folder of unlabeled images, that each folder's images were given to, and the
            path by which they were.
        skipped: one line for each folder that was not entered, by its path.
    """

    root: Path
    apart: Path | None = None
    levels: dict[Identity, Level] = field(default_factory=dict)
    paths: dict[Identity, Path] = field(default_factory=dict)
    owners: dict[Identity, tuple[Path, Path]] = field(default_factory=dict)
    skipped: dict[Path, str] = field(default_factory=dict)

    def level(self, folder: Path) -> Level:
        """What lies directly in a folder; each is read once.

        Raises:
            InputError: as in `read_level`.
        """
        identity = self._identity(folder)
        if identity not in self.levels:
            self.levels[identity], self.paths[identity] = read_level(folder), folder
        return self.levels[identity]

    def enters(self, folder: Path, link: bool, skipped: dict[Path, str] | None = None) -> bool:
        """Whether a folder inside another is read as part of it; where it is not, `skipped` gets a line about it."""
        reason = ""
        if self.is_apart(folder):
            return False
        if link:
            resolved = folder.resolve()
            if any(inside.resolve().is_relative_to(resolved) for inside in (folder.parent, self.root)):
                reason = "a link to a folder that it lies in"
        if not reason and self.level(folder).is_run:
            reason = "a run of edgedistill"
        if reason and skipped is not None:
            skipped[folder] = f"{self.shown(folder)}, {reason}"
        return not reason

    def is_apart(self, folder: Path) -> bool:
        """Whether it is the folder `apart`."""
        return self.apart is not None and self.apart.is_dir() and self.apart.samefile(folder)

    def holds_runs(self, folder: Path) -> bool:
        """Whether a folder holds run directories of edgedistill, or their cache."""
        level = self.level(folder)
        runs = (folder / name for name in level.folders if name not in level.links)
        return any(self.level(path).is_run for path in runs) or (folder / CACHE / "images").is_dir()

    def levels_below(self, folder: Path, skipped: dict[Path, str] | None = None) -> Iterator[tuple[str, Path, Level]]:
        """Yield the prefix of names, the path and the contents of a folder and of those at any depth below it.

        Each real folder is yielded once, by a path without links where there is one. `skipped` gets a line about each
        folder that is not entered.
        """
        entered: set[Identity] = set()
        plain, linked = deque([("", folder)]), deque[tuple[str, Path]]()
        while plain or linked:
            prefix, path = (plain or linked).popleft()
            identity = self._identity(path)
            if identity in entered:
                if skipped is not None:
                    skipped[path] = f"{self.shown(path)}, a link to a folder that is read already"
                continue
            entered.add(identity)
            level = self.level(path)
            yield prefix, path, level
            for name in level.folders:
                if self.enters(path / name, name in level.links, skipped):
                    (linked if name in level.links else plain).append((f"{prefix}{name}/", path / name))

    def count(self, folder: Path) -> int:
        """Number of images at any depth in a folder."""
        return sum(len(level.images) for _, _, level in self.levels_below(folder))

    def other_files(self, folder: Path) -> str:
        """The numbers of files in a folder that are no images, by suffix: `3 .heic, 1 without a suffix`."""
        return _by_suffix(level.suffixes for _, _, level in self.levels_below(folder))

    def take(self, folder: Path) -> list[str]:
        """The images at any depth in a class folder, which is their owner: paths relative to it, sorted.

        Raises:
            InputError: a folder in it has another owner already.
        """
        names = []
        for prefix, path, level in self.levels_below(folder, self.skipped):
            owner, first = self.owners.setdefault(self._identity(path), (folder, path))
            if owner != folder:
                raise InputError(
                    f"{shown(path)} and {shown(first)} are one folder, in two classes or splits",
                    "remove the link: an image has one class, in one split",
                )
            names += [prefix + name for name in level.images]
        return sorted(names)

    def take_rest(self, folder: Path) -> tuple[list[str], int]:
        """The images in a folder that have no owner yet, as `take` gives them, and the number of the others."""
        names, owned = [], 0
        for prefix, path, level in self.levels_below(folder, self.skipped):
            if self.owners.setdefault(self._identity(path), (folder, path))[0] == folder:
                names += [prefix + name for name in level.images]
            else:
                owned += len(level.images)
        return sorted(names), owned

    def owned(self, folder: Path) -> bool:
        """Whether the images directly in a folder were given to anybody."""
        return self._identity(folder) in self.owners

    def shown(self, path: Path) -> str:
        """A path in a line about the data set: relative to its folder where it lies inside."""
        return shown(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def left_out(self) -> list[str]:
        """A line each about files, hidden images, folders of the system and other folders that were left out."""
        listed = [(self.paths[identity], level) for identity, level in self.levels.items() if not level.is_run]
        hidden = [path / name for path, level in listed for name in level.hidden_images]
        systems: Counter[str] = Counter()
        number = len(hidden)
        for path, level in listed:
            for name in level.hidden_folders:
                inside = 0 if self.owned(path / name) else hidden_images(path / name)
                hidden += [path / name] if inside else []
                number += inside
            for name in level.system_folders:
                systems[name] += hidden_images(path / name)
        parts = [_by_suffix(level.suffixes for _, level in listed)]
        if specials := sum(level.specials for _, level in listed):
            parts.append("1 FIFO, socket or device" if specials == 1 else f"{specials} FIFOs, sockets or devices")
        lines = [", ".join(part for part in parts if part)]
        if number:
            examples = ", ".join(self.shown(path) for path in hidden[:MAX_EXAMPLES])
            lines.append(f"{count_of(number, 'hidden image')} ({examples}{', ...' * (len(hidden) > MAX_EXAMPLES)})")
        lines.append(", ".join(f"{count_of(n, 'image')} in {shown(name)}" for name, n in sorted(systems.items()) if n))
        return [f"left out: {line}" for line in (*lines, *self.skipped.values()) if line]

    def _identity(self, folder: Path) -> Identity:
        status = folder.stat()
        return status.st_dev, status.st_ino


def _by_suffix(counters: Iterable[Counter[str]]) -> str:
    suffixes: Counter[str] = Counter()
    for counter in counters:
        suffixes.update(counter)
    ordered = sorted(suffixes.items(), key=lambda pair: (-pair[1], pair[0]))
    parts = [f"{number} {shown(suffix) if suffix else 'without a suffix'}" for suffix, number in ordered[:MAX_SHOWN]]
    rest = sum(number for _, number in ordered[MAX_SHOWN:])
    return ", ".join([*parts, *([f"{rest} of other suffixes"] if rest else [])])
