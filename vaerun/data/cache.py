"""Raw arrays by name: found prepared, downloaded or read once, then mapped from an uncompressed copy in the cache.

A copy is a folder `<cache>/prepared/<name>-<key>/` of .npy files and a meta.json. It is built beside its place under a
lock and renamed when whole, so every process sees either all of it or nothing, whenever another one is killed.
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
from vaerun.data.arrays import FIELDS, Arrays, check_arrays, digest, split_off_test
from vaerun.data.image_files import walk_files
from vaerun.data.sources import describe_error
from vaerun.errors import InputError
from vaerun.storage.paths import expand_user

FORMAT = 1
"""Part of every key: to be raised when sources or the layout of a copy change, so that older copies are not used."""

SCRATCH = "vaerun-scratch-"
SCRATCH_SECONDS = 7 * 24 * 3600.0  # no source takes so long to read


def cache_dir() -> Path:
    """`$VAERUN_CACHE`, else `$XDG_CACHE_HOME/vaerun`, else `~/.cache/vaerun`. It need not exist.

    Raises InputError where the last is asked for and there is no home.
    """
    if own := os.environ.get("VAERUN_CACHE"):
        return expand_user(own)
    return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vaerun"


def data_root(root: str | None = None) -> Path:
    """Where prepared files NAME.npz lie: `root`, else `$VAERUN_DATA`, else the cache folder.

    Raises `InputError` where the first two name something that is not a folder.
    """
    for setting, folder in (("data.root", root), ("VAERUN_DATA", os.environ.get("VAERUN_DATA"))):
        if folder:
            path = expand_user(folder)
            if not path.is_dir():
                raise InputError(f"{setting}={folder}: no such folder; create it or correct {setting}")
            return path
    return cache_dir()


def check_known(name: str) -> None:
    """Raises `InputError` with the closest name for one that is not in `sources.BUILT_IN`."""
    if name not in sources.BUILT_IN:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), sources.BUILT_IN, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown data set {name!r}; {hint}there are: {', '.join(sources.BUILT_IN)}")


def load_built_in(name: str, *, root: str | None = None) -> Arrays:
    """The arrays of a data set that needs only its name; `InputError` for an unknown one."""
    check_known(name)
    # The digits come with scikit-learn and are read in less time than a copy.
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
    """Checked arrays of a data set, with a test part and the sha256; memory-mapped and read-only if `cached`.

    Without `path`, a prepared file `<root>/<name>.npz` (see `data_root`) comes before `source`, which is then a
    download. The source is called as `source(scratch, **options)`, with `path=path` if one is given, and only if the
    cache holds no copy for this name, these options and the present state of the file or folder. Raises `InputError`
    for unusable files, failed downloads and a cache that cannot be written.
    """
    options = dict(options or {})
    prepared = None if path is not None else data_root(root) / f"{name}.npz"
    if prepared is not None and os.path.isfile(prepared):
        if any(value is not None for value in options.values()):
            raise InputError(
                f"{name}: options {options} do not apply to the prepared file {prepared}; move it or drop them"
            )
        source, arguments, origin = (
            sources.npz,
            {"path": prepared, "split": sources.UNOFFICIAL_SPLITS.get(name)},
            prepared,
        )
        prepared = None  # nothing is missing
    elif path is not None:
        arguments, origin = {"path": path, **options}, expand_user(path)
    else:
        arguments, origin = options, None

    def make(scratch: Path) -> Arrays:
        return _make(name, source, scratch, arguments, missing=prepared)

    if source is sources.digits:
        return make(Path(os.devnull))  # read where scikit-learn has them: a killed process leaves nothing
    if not cached:
        _clear_scratch()
        with (
            _naming_folder(Path(tempfile.gettempdir()), "TMPDIR"),
            tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch,
        ):
            return make(Path(scratch))
    cache = cache_dir()
    facts = [FORMAT, name, None if origin is None else [str(origin.resolve()), _stamp(origin)], options]
    if _unbound(source) not in (
        sources.BUILT_IN.get(name),
        sources.npz,
        sources.folder,
    ):  # another function of this name
        facts.append(_qualified_name(source))
    key = hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()[:16]
    entry = cache / "prepared" / f"{name}-{key}"
    # A whole copy is never changed, so reading it takes no lock (and works in a cache that cannot be written).
    return _load(entry) or _build(entry, name, cache, make)


def _unbound(source: Callable[..., Arrays]) -> Any:
    """The function itself, without the options bound to it."""
    return getattr(source, "func", source)


def _qualified_name(source: Callable[..., Arrays]) -> str:
    own = _unbound(source)
    return f"{own.__module__}.{getattr(own, '__qualname__', type(own).__qualname__)}"


def _clear_scratch() -> None:
    """Remove the scratch folders that killed processes have left long ago."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
            if time.time() - folder.stat().st_mtime > SCRATCH_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _build(entry: Path, name: str, cache: Path, make: Callable[[Path], Arrays]) -> Arrays:
    """Makes the copy at `entry`, one process at a time for each name."""
    from filelock import FileLock

    partial = entry.parent / f"{name}.partial"
    with _naming_folder(cache):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.parent / f"{name}.lock"):
            if (ready := _load(entry)) is not None:
                return ready  # another process made it while this one waited
            # The lock is ours, so whatever lies here was left by a process that was killed.
            shutil.rmtree(partial, ignore_errors=True)
            try:
                (partial / "scratch").mkdir(parents=True)
                arrays = make(partial / "scratch")
                _store(arrays, partial / "copy")
                if entry.exists():  # damaged: moved away whole, since a folder cannot be renamed onto a full one
                    entry.rename(partial / "damaged")
                os.rename(partial / "copy", entry)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    if (ready := _load(entry)) is None:
        raise InputError(f"{entry}: the copy just written cannot be read back; check the disk, or set VAERUN_CACHE")
    return ready


def _make(
    name: str, source: Callable[..., Arrays], scratch: Path, arguments: dict[str, Any], missing: Path | None
) -> Arrays:
    """Calls the source; `missing` is the prepared file that would have made its download unnecessary."""
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
                f"{name}: no prepared file {missing}, and the download failed ({describe_error(error)}); on a machine "
                f"with a network run 'vaerun-data {name} --output DIR', then put {missing.name} into {missing.parent}"
            ) from error
        if isinstance(error, OSError):
            raise InputError(f"{name}: {arguments.get('path')}: cannot be read ({describe_error(error)})") from error
        raise
    if not isinstance(arrays, Arrays):
        raise InputError(f"{name}: its source gave {type(arrays).__name__}, and no vaerun.data.arrays.Arrays")
    arrays = check_arrays(arrays, name)
    if arrays.test_images is None:
        arrays = split_off_test(arrays.train_images, arrays.train_labels)
    return dataclasses.replace(arrays, sha256=digest(arrays))


def _stamp(path: Path) -> list[Any]:
    """The state of a file, or of all files below a folder: names, sizes and times of change. Empty if there is none."""
    files = [path] if path.is_file() else sorted(walk_files(path))
    stamp = []
    for file in files:
        try:
            status = file.stat()
        except OSError:  # a dangling link, or gone since: the source says so if it matters
            continue
        stamp.append([str(file.relative_to(path)), status.st_size, status.st_mtime_ns])
    return stamp


def _store(arrays: Arrays, folder: Path) -> None:
    """Writes a copy, on the disk itself before it returns: a rename may outlive a power cut that its files do not."""
    folder.mkdir()
    present: dict[str, Any] = {}
    for field in FIELDS:
        array = getattr(arrays, field)
        if array is not None:
            with open(folder / f"{field}.npy", "wb") as file:
                np.save(_WriteOnly(file), array)
                _sync(file)
                present[field] = {"bytes": file.tell(), "shape": list(array.shape), "dtype": array.dtype.str}
    with open(folder / "meta.json", "w", encoding="utf-8") as text:
        json.dump({"split": arrays.split, "sha256": arrays.sha256, "arrays": present}, text, indent=1)
        _sync(text)


class _WriteOnly:
    """A file that numpy does not know as one: its own way of writing loses the system's reason for a failure."""

    def __init__(self, file: Any) -> None:
        self.write = file.write


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _load(entry: Path) -> Arrays | None:
    """The copy at `entry`, memory-mapped, or None if there is none or it does not match its meta.json."""
    found: dict[str, np.ndarray] = {}
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        for field, expected in meta["arrays"].items():
            file = entry / f"{field}.npy"
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if expected != {"bytes": file.stat().st_size, "shape": list(array.shape), "dtype": array.dtype.str}:
                return None
            found[field] = array
        labels, test = found.get("train_labels"), found.get("test_images")
        return Arrays(found["train_images"], labels, test, found.get("test_labels"), meta["split"], meta["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def _naming_folder(folder: Path, setting: str = "VAERUN_CACHE") -> Iterator[None]:
    """Names the folder where the system refuses to write, or to lock, in it."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        raise InputError(
            f"cannot write to {folder} ({describe_error(error)}); set {setting} to a folder that can be written "
            "and has space"
        ) from error
