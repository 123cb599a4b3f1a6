"""The image files below a folder: which there are, in which order, and what else is there."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from vaerun.errors import InputError
from vaerun.text import natural_key, printable

SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .bmp .webp .ppm .pgm .pbm .pnm .tif .tiff .gif .avif".split()  # noqa: SIM905
)
SYSTEM_NAMES = frozenset(
    ("__macosx", "$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
) | {"@eadir", "#recycle", "#snapshot", "@__thumb", "lost+found", "network trash folder", "temporary items"}
"""Names that systems and network storage put among a user's files, besides hidden ones such as macOS's `._1.png`."""

MAXIMUM_PATHS = 8  # to the same folder: some links to a folder are legitimate
NAMED = 5  # folders or suffixes in a note

RelativePath = tuple[str, ...]
"""The names from a folder down to a file or subfolder."""


@dataclass
class Listing:
    """What is below a folder, without hidden and system files.

    Attributes:
        root: the folder.
        images: its image files, in natural order: 2.png before 10.png.
        folders: all its subfolders, in natural order.
        left_out: number of other files by lower-case suffix.
        hidden: number of hidden files and folders; what hidden folders contain is not counted.
        broken_links: number of links without a target that are not named like an image.
    """

    root: Path
    images: list[RelativePath] = field(default_factory=list)
    folders: list[RelativePath] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    broken_links: int = 0

    def path(self, names: RelativePath) -> Path:
        """Of a file or subfolder."""
        return self.root.joinpath(*names)

    def left_out_text(self) -> str:
        """Such as '30 .heic, 2 .txt'; '' if no file was left out."""
        counts = _by_suffix(self.left_out)
        if self.broken_links:
            counts.append(count_of(self.broken_links, "broken link"))
        return name_some(counts)

    def notes(self) -> list[str]:
        """See `Arrays`."""
        read = Counter(os.path.splitext(names[-1])[1].lower() for names in self.images)
        notes = [f"read: {name_some(_by_suffix(read))}"] if len(read) > 1 else []
        if text := self.left_out_text():
            notes.append(f"left out: {text}")
        if self.hidden:
            notes.append(f"{count_of(self.hidden, 'hidden or system file')} left out")
        ancestors = {names[:depth] for names in self.images for depth in range(len(names))}
        empty = [folder for folder in self.folders if folder not in ancestors and folder[:-1] in ancestors]
        if empty:
            notes.append(f"no images in {name_some(['/'.join(folder) + '/' for folder in empty])}")
        return notes


def readable_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the image files that are read; AVIF depends on how Pillow was built."""
    return SUFFIXES if find_spec("PIL._avif") else SUFFIXES - {".avif"}


def list_images(root: Path) -> Listing:
    """List a folder. Raises InputError for folders that cannot be read, links in a cycle, and if there is no image."""
    listing, suffixes = Listing(root), readable_suffixes()
    for folder, subfolders, names in walk(root, strict=True):
        base = folder.relative_to(root).parts
        # Hidden folders are not entered: `walk` goes on with what is left in the list.
        visible = [name for name in subfolders if not is_hidden(name)]
        listing.hidden += len(subfolders) - len(visible)
        subfolders[:] = visible
        listing.folders += [(*base, name) for name in visible]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if is_hidden(name):
                listing.hidden += 1
            elif suffix in suffixes:
                listing.images.append((*base, name))
            elif not (folder / name).exists():
                listing.broken_links += 1
            else:
                listing.left_out[printable(suffix, 20)] += 1
    if not listing.images:
        there = f", only {text}" if (text := listing.left_out_text()) else ""
        raise InputError(
            f"{root}: no image files ({' '.join(sorted(suffixes))}) found{there}; set data.path to a folder with images"
        )
    for paths in (listing.images, listing.folders):
        paths.sort(key=lambda names: [natural_key(name) for name in names])
    return listing


def walk(root: Path, strict: bool = False) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folder, names of its subfolders, and names of its files, for a folder and all below it, following links.

    Names of subfolders that the caller removes from the list are not entered. Raises InputError if links lead to the
    same folder again and again, in a cycle or by combinations of several links: the walk would not end. If `strict`, it
    also raises InputError for folders that cannot be read, which are left out otherwise.
    """

    def refuse(error: OSError) -> None:
        if strict:
            reason = error.strerror or type(error).__name__
            raise InputError(f"{error.filename}: cannot be listed ({reason}): make it readable, or move it elsewhere")

    visits: Counter[tuple[int, int]] = Counter()  # visits of each folder, by device and inode
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        try:
            status = os.stat(folder)
        except OSError:  # deleted in the meantime
            continue
        visits[status.st_dev, status.st_ino] += 1
        if visits[status.st_dev, status.st_ino] > MAXIMUM_PATHS:
            raise InputError(
                f"{root}: links lead to {folder} by more than {MAXIMUM_PATHS} paths, as in a cycle: remove some"
            )
        yield Path(folder), subfolders, names


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or belongs to a system, and so is no data of the user's."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def compose(name: str) -> str:
    """A name in Unicode's normal form C: macOS stores decomposed letters, and the same name must be the same class."""
    return unicodedata.normalize("NFC", name)


def _by_suffix(counts: Counter[str]) -> list[str]:
    return [f"{count} {suffix or 'without a suffix'}" for suffix, count in counts.most_common()]


def count_of(count: int, noun: str) -> str:
    """Such as '1 file' and '2 files'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def name_some(items: Iterable[str]) -> str:
    """The first few items, and the number of the others."""
    items = list(items)
    named = [printable(item, 60) for item in items[:NAMED]]
    return ", ".join(named) + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")
