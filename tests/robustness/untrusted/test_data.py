"""Untrusted data files: no program is started, nothing is allocated that they do not hold, no plain http."""

from __future__ import annotations

import http.server
import os
import struct
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.robustness.untrusted import assert_harmless, open_all, peak_bytes, watch_side_effects
from support.runs.evaluating import SMALL
from torchvision import datasets

from vaerun.cli import evaluate
from vaerun.data import decoding, sources
from vaerun.data.cache import load_arrays
from vaerun.data.image_files import list_images
from vaerun.errors import InputError
from vaerun.storage import npz as archives
from vaerun.storage.npz import read_npz

GIB = 1 << 30
IMAGES = np.zeros((4, 1, 8, 8), dtype=np.uint8)


def npy(shape: tuple[int, ...], data: bytes, kind: str = "|u1") -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def overlapping(path: Path) -> Path:
    """A hundred directory entries for one compressed member."""
    content = npz(path, {"a.npy": npy((1 << 20,), bytes(1 << 20))}).read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entries = b"".join(content[start:end].replace(b"a.npy", f"{i:05d}".encode()) for i in range(100))
    tail = bytearray(content[end:])
    struct.pack_into("<HHII", tail, 8, 100, 100, len(entries), start)
    path.write_bytes(content[:start] + entries + bytes(tail))
    return path


def expanding(path: Path) -> Path:
    """A directory that declares a few bytes to be a terabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", npy((1 << 40,), bytes(1 << 20)))
        archive.filelist[0].file_size = 1 << 40
    return path


def with_dictionary(path: Path, size: int) -> Path:
    """Images compressed by LZMA with a dictionary of this size."""
    content = bytearray(npz(path, {"train_images.npy": npy((64,), bytes(64))}, zipfile.ZIP_LZMA).read_bytes())
    start = 30 + len("train_images.npy") + 5  # the local header, its name; version, length and first property of LZMA
    assert int.from_bytes(content[start : start + 4], "little") == 1 << 23
    content[start : start + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def changed(path: Path, offset: int, value: bytes) -> Path:
    """A stored array with changed bytes in both of its headers, at this offset into the directory entry."""
    content = bytearray(npz(path, {"train_images.npy": npy((64,), bytes(64))}, zipfile.ZIP_STORED).read_bytes())
    entry = content.index(b"PK\x01\x02")
    for start in (entry + offset, offset - 2):  # the local header lacks the version of its maker
        content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


FILES: dict[str, Callable[[Path], Path]] = {
    "shape": lambda p: npz(p, {"train_images.npy": npy((10**12, 1, 8, 8), bytes(64))}),
    "negative shape": lambda p: npz(p, {"train_images.npy": npy((-1, 1, 8, 8), bytes(64))}),
    "items of no size": lambda p: npz(p, {"train_images.npy": npy((10**15,), b"", "|V0")}),
    "items of great size": lambda p: npz(p, {"train_images.npy": npy((1,), bytes(64), f"|V{10**9}")}),
    "objects": lambda p: npz(p, {"train_images.npy": npy((1,), b"cos\nsystem\n(S'touch pwned'\ntR.", "|O")}),
    "header": lambda p: npz(p, {"train_images.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(99)}),
    "expanding": expanding,
    "overlapping": overlapping,
    "bzip2": lambda p: npz(p, {"train_images.npy": npy((64,), bytes(64))}, zipfile.ZIP_BZIP2),
    "dictionary": lambda p: with_dictionary(p, 2**32 - 1),
    "pipe": lambda p: os.mkfifo(p) or p,  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("name", FILES)
def test_archives_that_claim_more_than_they_hold(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    copied: Callable[..., Path],
    command_environment: None,
    name: str,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    path = FILES[name](tmp_path / "a.npz")
    before = peak_bytes()
    with pytest.raises(InputError, match=r"a\.npz"), watch_side_effects() as effects:
        load_arrays("npz", sources.npz, path=str(path))
    with pytest.raises((ValueError, OSError)):
        read_npz(path)
    run = copied("model=vae", *SMALL)
    (run / "per_example.npz").unlink()
    os.link(path, run / "per_example.npz")
    assert evaluate.main([f"run={run}"]) == 2
    assert "per_example.npz cannot be read" in capsys.readouterr().err
    assert_harmless(open_all(run, capsys, ("table",)), run)
    assert peak_bytes() - before < GIB // 4
    assert not (tmp_path / "pwned").exists()
    assert effects.started == []


def test_an_archive_may_expand_as_images_do(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", train_images=np.zeros((3000, 1, 28, 28), dtype=np.uint8))
    assert read_npz(tmp_path / "a.npz")["train_images"].shape == (3000, 1, 28, 28)


def test_an_archive_may_be_compressed_by_lzma(tmp_path: Path) -> None:
    """As in data sets packed for size; up to the dictionary of the strongest preset."""
    for size in (1 << 23, 1 << 26):
        assert read_npz(with_dictionary(tmp_path / "a.npz", size))["train_images"].shape == (64,)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (24, (10**6).to_bytes(4, "little"), "sizes of its member train_images.npy contradict each other"),
        (8, b"\x01", "member train_images.npy is encrypted or uses"),
    ],
)
def test_headers_of_a_stored_array(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    """Its uncompressed size, and the flag for encryption."""
    assert read_npz(changed(tmp_path / "a.npz", 8, b"\x00"))["train_images"].shape == (64,)
    with pytest.raises(ValueError, match=message):
        read_npz(changed(tmp_path / "a.npz", offset, value))


def test_bytes_behind_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header check detects them first; reading the array checks as well."""
    array = npy((64,), bytes(64))
    path = npz(tmp_path / "a.npz", {"train_images.npy": array + array})
    with pytest.raises(ValueError, match="does not match its"):
        read_npz(path)
    monkeypatch.setattr(archives, "check_header", lambda *_: None)
    with pytest.raises(ValueError, match="more than one array"):
        read_npz(path)


def refused(folder: Path, *words: str) -> None:
    with watch_side_effects() as effects, pytest.raises(InputError) as caught:
        sources.folder(folder, path=folder, channels=1)
    assert effects.started == []
    for word in words:
        assert word in str(caught.value)


def test_images_that_other_programs_draw(tmp_path: Path) -> None:
    """Pillow passes PostScript to Ghostscript, whatever the file name."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    refused(tmp_path, "a.png: cannot be read as an image")


def test_an_image_of_a_name_that_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    refused(tmp_path, "a.png", "not a regular file")


@pytest.mark.parametrize("kind", ["ring", "two ways at each level"])
def test_links_that_would_be_followed_for_ever(tmp_path: Path, kind: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (8, 8)).save(images / "x.png")
    if kind == "ring":
        for name in "abc":
            (images / name).symlink_to(".")
    else:
        for level in range(30):
            folder = images / f"level{level:02}"
            folder.mkdir()
            for name in "ab":
                (folder / name).symlink_to(f"../level{level + 1:02}")
    refused(images, "links lead to", "by more than 8 paths")
    with pytest.raises(InputError, match="by more than 8 paths"):  # where its copy is looked for
        load_arrays("folder", sources.folder, path=str(images))


def test_a_folder_that_is_linked_to_twice(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in "ab":
        Image.new("L", (8, 8)).save(tmp_path / "real" / f"{name}.png")
    (tmp_path / "linked").symlink_to("real")
    assert len(list_images(tmp_path).images) == 4


def test_an_image_that_claims_billions_of_pixels(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    before = peak_bytes()
    refused(tmp_path, "a.png")
    assert peak_bytes() - before < GIB // 8


@pytest.mark.parametrize("size", [10**6, 1 << 40, [1, 1 << 30]])
def test_an_image_that_is_enlarged_without_end(tmp_path: Path, size: Any) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"data.image_size=.* an image has at most 67108864 pixels"):
        sources.folder(tmp_path, path=tmp_path, image_size=size, channels=1)


def test_images_of_far_more_pixels_than_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of one colour: each is within the limit, their sum is not."""
    for i in range(20):
        Image.new("L", (1000, 1000)).save(tmp_path / f"{i}.png")
    files = sorted(tmp_path.iterdir())
    assert len(decoding.read_pixels(files, None, 1).images) == 20
    monkeypatch.setattr(decoding, "DATA_BYTES", 10**7)
    monkeypatch.setattr(np, "empty", None)
    with pytest.raises(InputError, match=r"20 image files of \d+ bytes would take 20000000 bytes of pixels"):
        decoding.read_pixels(files, None, 1)


# -- downloads ------------------------------------------------------------------------------------------------------


def test_all_addresses_are_encrypted_and_all_files_have_a_checksum() -> None:
    downloads: list[tuple[str, str]] = []
    for kind in (datasets.MNIST, datasets.FashionMNIST):
        assert len(kind.resources) == 4
        mirrors = [url for url in map(sources._https_url, kind.mirrors) if url.startswith("https://")]
        assert mirrors
        downloads += [(url + name, md5) for url in mirrors for name, md5 in kind.resources]
    downloads.append((datasets.CIFAR10.url, datasets.CIFAR10.tgz_md5))
    parts = [datasets.SVHN.split_list[part] for part in ("train", "test")]
    downloads += [(sources._https_url(url), md5) for url, _, md5 in parts]
    place = datasets.Omniglot.download_url_prefix
    downloads += [(f"{place}/{name}.zip", md5) for name, md5 in datasets.Omniglot.zips_md5.items()]
    for url, md5 in downloads:
        assert url.startswith("https://"), url
        assert len(md5) == 32


@sources._download()
def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return bytes(answer.read())


def test_plain_http_is_not_spoken() -> None:
    for host in (
        "example.org/x",
        "127.0.0.1.example.org/",
        "localhost.example.org:80/",
        "localhost@example.org",
        "[::2]",
    ):
        url = f"http://{host}"
        with watch_side_effects() as effects, pytest.raises(urllib.error.URLError, match="does not use https"):
            fetch(url)
        assert effects.connected == []


def test_a_server_sends_nobody_on_to_plain_http() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/away" else 200)
            self.send_header("Location", "http://example.org/x")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        here = f"http://127.0.0.1:{server.server_address[1]}"
        assert fetch(f"{here}/stay") == b"ok"
        with pytest.raises(urllib.error.URLError, match=r"example\.org/x does not use https"):
            fetch(f"{here}/away")
        server.shutdown()
