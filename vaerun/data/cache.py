"""Raw arrays by name: from a prepared file, a download or the user's files, then memory-mapped from a cached copy.

A copy is a folder `<cache>/prepared/<name>-<key>/` of uncompressed .npy files and a meta.json. It is built in a
temporary folder under a lock and renamed when complete, so that other processes see all of it or nothing, even if the
builder is killed.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import hashlib
import http.client
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vaerun.data import sources
from vaerun.data.arrays import FIELDS, PARTS, Arrays, check_arrays, digest, split_off_test
from vaerun.data.formats.files import files_read
from vaerun.data.image_files import readable_suffixes, walk
from vaerun.data.sources import describe_error
from vaerun.errors import InputError
from vaerun.storage.paths import expand_user

FORMAT = 3
"""Part of every key; incremented when the sources or the layout of a copy change, to invalidate older copies."""

META = ("split", "sha256", "class_names", "unlabelled", "notes", "warnings")
"""What meta.json keeps besides the arrays."""

SCRATCH = "vaerun-scratch-"
SCRATCH_SECONDS = 7 * 24 * 3600.0  # age at which a scratch folder is abandoned: longer than any source takes


def cache_dir() -> Path:
    """`$VAERUN_CACHE`, else `$XDG_CACHE_HOME/vaerun`, else `~/.cache/vaerun`. It may not exist yet.

    Raises InputError if the home folder is needed and there is none.
    """
    if folder := os.environ.get("VAERUN_CACHE"):
        return expand_user(folder)
    return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vaerun"


def data_root(root: str | None = None) -> Path:
    """The folder of prepared files NAME.npz: `root`, else `$VAERUN_DATA`, else the cache folder.

    Raises InputError if `root` or `$VAERUN_DATA` is not a folder.
    """
    for setting, folder in (("data.root", root), ("VAERUN_DATA", os.environ.get("VAERUN_DATA"))):
        if folder:
            path = expand_user(folder)
            if not path.is_dir():
                raise InputError(f"{setting}={folder}: no such folder; create it or change {setting}")
            return path
    return cache_dir()


def check_known(name: str) -> None:
    """Raise InputError, with the closest match, unless the name is in `sources.BUILT_IN`."""
    if name not in sources.BUILT_IN:
        matches = difflib.get_close_matches(name.lower().replace("-", "_"), sources.BUILT_IN, n=1, cutoff=0.4)
        hint = f"did you mean {matches[0]}? " if matches else ""
        raise InputError(f"unknown data set {name!r}; {hint}available: {', '.join(sources.BUILT_IN)}")


def load_built_in(name: str, *, root: str | None = None) -> Arrays:
    """The arrays of a built-in data set; raises InputError if the name is unknown."""
    check_known(name)
    # The digits come with scikit-learn, and read faster than a cached copy.
    return load_arrays(name, sources.BUILT_IN[name], root=root, cached=name != "digits")


def load_arrays(
    name: str,
    source: Callable[..., Arrays],
    *,
    root: str | None = None,
    path: str | None = None,
    options: dict[str, Any] | None = None,
    cached: bool = True,
) -> Arrays:
    """Validated arrays of a data set with a test part and the sha256; memory-mapped and read-only if `cached`.

    Without `path`, a prepared file `<root>/<name>.npz` (see `data_root`) takes precedence over `source`, usually a
    download. The source is called as `source(scratch, **options)`, with `path=path` if given, unless the cache has a
    copy for this name, these options and the current state of the file or folder. Raises InputError for invalid files,
    failed downloads and a cache that cannot be written.
    """
    options = dict(options or {})
    prepared = None if path is not None else data_root(root) / f"{name}.npz"
    if prepared is not None and os.path.isfile(prepared):
        if any(value is not None for value in options.values()):
            raise InputError(
                f"{name}: options {options} do not apply to the prepared file {prepared}: move the file or drop them"
            )
        source, origin = sources.npz, prepared
        arguments = {"path": prepared, "split": sources.UNOFFICIAL_SPLITS.get(name)}
        prepared = None  # it is not missing
    elif path is not None:
        arguments, origin = {"path": path, **options}, expand_user(path)
    else:
        arguments, origin = options, None

    def make(scratch: Path) -> Arrays:
        return _call_source(name, source, scratch, arguments, missing=prepared)

    if source is sources.digits:
        return make(Path(os.devnull))  # needs no scratch folder, so a killed process leaves nothing behind
    if not cached:
        _clear_scratch()
        with (
            _naming_folder(Path(tempfile.gettempdir()), "TMPDIR"),
            tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch,
        ):
            return make(Path(scratch))
    cache = cache_dir()
    facts = [FORMAT, name, None if origin is None else [str(origin.resolve()), _stamp(origin)], options]
    # A plug-in's source of the same name is another source.
    if _unbound(source) not in (sources.BUILT_IN.get(name), sources.npz, sources.folder):
        facts.append(_qualified_name(source))
    key = hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()[:16]
    entry = cache / "prepared" / f"{name}-{key}"
    # A complete copy is immutable, so reading it takes no lock and works in a read-only cache.
    return _load(entry) or _build(entry, name, cache, make)


def _unbound(source: Callable[..., Arrays]) -> Any:
    """The function itself, without the options that functools.partial binds to it."""
    return getattr(source, "func", source)


def _qualified_name(source: Callable[..., Arrays]) -> str:
    function = _unbound(source)
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _clear_scratch() -> None:
    """Remove old scratch folders of killed processes."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
            if time.time() - folder.stat().st_mtime > SCRATCH_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _build(entry: Path, name: str, cache: Path, make: Callable[[Path], Arrays]) -> Arrays:
    """Build the copy at `entry`, one process at a time per name."""
    from filelock import FileLock

    partial = entry.parent / f"{name}.partial"
    with _naming_folder(cache):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.parent / f"{name}.lock"):
            if (ready := _load(entry)) is not None:
                return ready  # built by another process while this one waited
            # This process has the lock, so whatever is here was left by a killed process.
            shutil.rmtree(partial, ignore_errors=True)
            try:
                (partial / "scratch").mkdir(parents=True)
                arrays = make(partial / "scratch")
                _store(arrays, partial / "copy")
                if entry.exists():  # damaged; a folder cannot be renamed onto one that is not empty
                    entry.rename(partial / "damaged")
                os.rename(partial / "copy", entry)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    if (ready := _load(entry)) is None:
        raise InputError(f"{entry}: the copy just written cannot be read back: check the disk, or set VAERUN_CACHE")
    return ready


def _call_source(
    name: str, source: Callable[..., Arrays], scratch: Path, arguments: dict[str, Any], missing: Path | None
) -> Arrays:
    """Validated arrays of the source; `missing` is the prepared file that would have made its download unnecessary."""
    try:
        arrays = source(scratch, **arguments)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the scratch folder's disk is full
        if missing is not None and _unbound(source) is not sources.BUILT_IN.get(name):
            raise InputError(
                f"{name}: its source {_qualified_name(source)} failed ({describe_error(error)})"
            ) from error
        if missing is not None:
            raise InputError(
                f"{name}: no prepared file {missing}, and the download failed ({describe_error(error)}): on another "
                f"machine run 'vaerun-data {name} --output DIR', then put {missing.name} into {missing.parent}"
            ) from error
        if isinstance(error, OSError):
            raise InputError(f"{name}: {arguments.get('path')}: cannot be read ({describe_error(error)})") from error
        raise
    if not isinstance(arrays, Arrays):
        raise InputError(f"{name}: its source returned {type(arrays).__name__}; expected vaerun.data.arrays.Arrays")
    arrays = check_arrays(arrays, name)
    if arrays.test_images is None:
        arrays = split_off_test(arrays)
    return dataclasses.replace(arrays, sha256=digest(arrays))


def _stamp(path: Path) -> list[Any]:
    """Names, sizes and modification times of a file and those read with it, or of all files below a folder.

    For a folder also the names of its subfolders, and which images can be read here.
    """
    if path.is_file():
        return [_file_stamp(file, path.parent) for file in files_read(path)]
    if not path.is_dir():
        return []
    stamp = []
    for folder, _, names in walk(path):
        stamp.append([str(folder.relative_to(path))])
        stamp += [_file_stamp(folder / name, path) for name in names]
    return [sorted(readable_suffixes()), *sorted(stamp)]


def _file_stamp(file: Path, root: Path) -> list[Any]:
    name = str(file.relative_to(root))
    try:
        status = file.stat()
    except OSError:  # a dangling link, or deleted since; the source reports it if it matters
        return [name]
    return [name, status.st_size, status.st_mtime_ns]


def _store(arrays: Arrays, folder: Path) -> None:
    """Write a copy and flush it to disk: a rename may survive a power cut that the content does not."""
    folder.mkdir()
    content = {field: getattr(arrays, field) for field in FIELDS} | {f"{part}_ids": i for part, i in arrays.ids.items()}
    present: dict[str, Any] = {}
    for name, array in content.items():
        if array is not None:
            with open(folder / f"{name}.npy", "wb") as file:
                np.save(_WriteOnly(file), array)
                _sync(file)
                present[name] = {"bytes": file.tell(), "shape": list(array.shape), "dtype": array.dtype.str}
    with open(folder / "meta.json", "w", encoding="utf-8") as text:
        json.dump({name: getattr(arrays, name) for name in META} | {"arrays": present}, text, indent=1)
        _sync(text)


class _WriteOnly:
    """Hides that this is a file from numpy, whose direct writes lose the cause of an OSError."""

    def __init__(self, file: Any) -> None:
        self.write = file.write


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _load(entry: Path) -> Arrays | None:
    """The copy at `entry`, memory-mapped, or None if there is none or it does not match its meta.json."""
    arrays: dict[str, np.ndarray] = {}
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        for name, expected in meta["arrays"].items():
            file = entry / f"{name}.npy"
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if expected != {"bytes": file.stat().st_size, "shape": list(array.shape), "dtype": array.dtype.str}:
                return None
            arrays[name] = array
        fields: dict[str, Any] = {field: arrays.get(field) for field in FIELDS}
        fields |= {name: meta[name] if isinstance(meta[name], str | None) else tuple(meta[name]) for name in META}
        ids = {part: arrays[f"{part}_ids"] for part in PARTS if f"{part}_ids" in arrays}
        return Arrays(**fields, ids=ids)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def _naming_folder(folder: Path, setting: str = "VAERUN_CACHE") -> Iterator[None]:
    """Raise InputError, naming the folder and its setting, if writing to it or locking it fails."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        raise InputError(
            f"cannot write to {folder} ({describe_error(error)}); set {setting} to a writable folder with enough space"
        ) from error
