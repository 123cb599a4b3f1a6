"""A folder of image files as a data set: its parts, its classes and its pixels."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vaerun.data.arrays import PARTS, Arrays, split_off_test
from vaerun.data.decoding import check_channels, parse_size, read_pixels
from vaerun.data.image_files import Listing, RelativePath, compose, count_of, list_images, name_some
from vaerun.errors import InputError
from vaerun.text import is_valid_unicode, natural_key

SPELLINGS = {
    "train": r"train(ing)?",
    "test": r"test(ing)?|eval(uation)?",
    "validation": r"val(id(ation)?)?|dev(elopment)?",
}
"""Names of folders that hold a part of the data, in any case: also train_set, test-images, val2017."""


def read_folder(root: Path, image_size: int | Sequence[int] | None, channels: int | None) -> Arrays:
    """The image files below a folder, in natural order (2.png before 10.png), as uint8 [N, channels, H, W].

    The parts are ROOT/train, ROOT/test and ROOT/validation (see SPELLINGS) if the first two exist, and what is in other
    folders is left out; else a tenth of the images is split off for testing. The class of an image is the first
    subfolder below that; images directly in the folder, or all in one subfolder, have no labels. Hidden files and
    folders are left out.

    `image_size` (pixels, or [H, W]) crops the centre to this aspect ratio and resizes with Lanczos; without it, all
    images must have the same size. With 1 (grey) or 3 (RGB) channels, transparent images are composited on white; 2 and
    4 keep alpha, and None keeps the channels of the files. Raises InputError for unusable folders and files.
    """
    if not root.is_dir():
        raise InputError(f"{root}: not a folder; expected a folder of images")
    check_channels(channels)
    size = parse_size(image_size)
    listing = list_images(root)
    notes: list[str] = []
    folders = _find_parts(listing, notes)
    files = {part: [names for names in listing.images if is_below(names, base)] for part, base in folders.items()}
    labels, class_names = _index_classes(root, files, folders, notes)
    decoded = read_pixels([listing.path(names) for part in files.values() for names in part], size, channels)
    if len(decoded.images) == 1:
        raise InputError(f"{root}: there is only one image: at least 2 are needed, one of them for testing")
    stops = np.cumsum([len(part) for part in files.values()])[:-1]
    images = dict(zip(files, np.split(decoded.images, stops), strict=True))
    arrays = Arrays(
        images["train"],
        labels.get("train"),
        images.get("test"),
        labels.get("test"),
        "official",
        validation_images=images.get("validation"),
        validation_labels=labels.get("validation"),
        class_names=class_names,
        ids={part: np.asarray([_valid("/".join(names)) for names in listed]) for part, listed in files.items()},
        notes=(*notes, *listing.notes(), *decoded.notes),
        warnings=tuple(decoded.warnings),
    )
    return arrays if arrays.test_images is not None else split_off_test(arrays)


def part_of(name: str) -> str | None:
    """The part of the data that a folder of this name holds, if it is one of the usual names."""
    plain = re.sub(r"[ _-]+", "", name.casefold())
    for part, spelling in SPELLINGS.items():
        if re.fullmatch(rf"(data|images?|imgs?)?({spelling})(set|data|images?|imgs?|split|part)?[0-9]*", plain):
            return part
    return None


def is_below(names: RelativePath, base: RelativePath) -> bool:
    """Whether a file or folder is below the folder `base`."""
    return len(names) > len(base) and names[: len(base)] == base


def _find_parts(listing: Listing, notes: list[str]) -> dict[str, RelativePath]:
    """The folder of each given part; only that of "train" if none are given.

    An archive often unpacks into a folder of its own: if all images are in one subfolder, that is the folder of the
    data, and so on.
    """
    base: RelativePath = ()
    while not (given := _given_parts(listing, base, notes)):
        subfolders = {names[len(base)] for names in listing.images}
        if len(subfolders) > 1 or any(len(names) == len(base) + 1 for names in listing.images):
            return {"train": base}
        base = (*base, *subfolders)
        notes.append(f"all images are in {_name(base)}, which is no class")
    return given


def _given_parts(listing: Listing, base: RelativePath, notes: list[str]) -> dict[str, RelativePath]:
    """The folder of each given part among the subfolders of `base`; empty if they are classes.

    Raises InputError if a part is missing or there twice.
    """
    found: dict[str, list[RelativePath]] = {}
    for folder in listing.folders:
        if folder[:-1] == base and (part := part_of(folder[-1])):
            found.setdefault(part, []).append(folder)
    named = [folder for folders in found.values() for folder in folders]
    if not {"train", "test"} <= found.keys():
        others = {names[: len(base) + 1] for names in listing.images}.difference(named)
        # Parts contain classes, but classes usually no further folders.
        halves = [*found.get("train", ()), *found.get("test", ())]
        nested = any(is_below(names[:-1], half) for half in halves for names in listing.images)
        if not named or (others and not nested):
            if named:
                notes.append(f"{name_some(map(_name, named))} read as classes, not as parts of the data")
            return {}
    for part, folders in found.items():
        if len(folders) > 1:
            raise InputError(
                f"{listing.path(base)}: {name_some(map(_name, folders))} look like the {part} part, each of them: put "
                "its images into one folder, or rename the others"
            )
    parts = {part: found[part][0] for part in PARTS if part in found}
    for part, other in (("train", "test"), ("test", "train")):
        if part not in parts:
            raise InputError(
                f"{listing.path(base)}: has {name_some(map(_name, named))} but no {part}/: add it, or set data.path="
                f"{listing.path(parts.get(other, named[0]))} to split off a test part"
            )
    with_images = {part: sum(is_below(names, folder) for names in listing.images) for part, folder in parts.items()}
    for part in ("train", "test"):
        if not with_images[part]:
            raise InputError(f"{listing.path(parts[part])}: no image files found in the {part} part: add some")
    parts = {part: folder for part, folder in parts.items() if with_images[part]}
    notes.append(f"given parts: {name_some(map(_name, parts.values()))}")
    outside = [names for names in listing.images if names[: len(base) + 1] not in parts.values()]
    if outside:
        places = sorted({"/".join(names[: len(base) + 1]) for names in outside})
        notes.append(f"{count_of(len(outside), 'image')} outside the parts left out (in {name_some(places)})")
    return parts


def _index_classes(
    root: Path, files: dict[str, list[RelativePath]], folders: dict[str, RelativePath], notes: list[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Labels int64 [N] of each part, and the names of the classes; {} and None if there are no labels.

    The class of an image is the first subfolder of its part's folder that distinguishes images. Names are compared in
    Unicode's normal form C. Classes without training images come last.
    """
    level = {part: len(folder) for part, folder in folders.items()}
    while True:
        flat = [names for part, listed in files.items() for names in listed if len(names) == level[part] + 1]
        nested = [names for part, listed in files.items() for names in listed if len(names) > level[part] + 1]
        if flat and nested:
            raise InputError(
                f"{root}: {'/'.join(flat[0])} is in no class subfolder but {'/'.join(nested[0])} is: put all images "
                "into subfolders, or none"
            )
        if flat:
            return {}, None
        classes = {part: [compose(names[level[part]]) for names in listed] for part, listed in files.items()}
        names = sorted(set(classes["train"]), key=natural_key)
        names += sorted({name for listed in classes.values() for name in listed}.difference(names), key=natural_key)
        if len(names) > 1:
            break
        notes.append(f"all images of each part are in {names[0]}/, which is no class")
        level = {part: depth + 1 for part, depth in level.items()}
    spellings = {names[level[part]] for part, listed in files.items() for names in listed}
    doubled = [name for name, count in Counter(map(compose, spellings)).items() if count > 1]
    if doubled:
        notes.append(f"folders named {name_some(sorted(doubled))} in several Unicode forms are one class each")
    deeper = [names for part, listed in files.items() for names in listed if len(names) > level[part] + 2]
    if deeper:
        notes.append(f"{count_of(len(deeper), 'image')} in subfolders of a class ({'/'.join(deeper[0])}) belong to it")
    index = {name: i for i, name in enumerate(names)}
    labels = {part: np.asarray([index[name] for name in listed], dtype=np.int64) for part, listed in classes.items()}
    return labels, tuple(map(_valid, names))


def _name(folder: RelativePath) -> str:
    return "/".join(folder) + "/"


def _valid(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 are written as escapes."""
    return name if is_valid_unicode(name) else os.fsencode(name).decode("utf-8", "backslashreplace")
