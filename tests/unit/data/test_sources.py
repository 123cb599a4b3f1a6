"""Downloads: the original raw formats through torchvision's own readers, failures, and several processes at once."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision import datasets
from torchvision.datasets import CIFAR10, MNIST, SVHN, Omniglot

from vaerun.cli.data import main
from vaerun.data.arrays import Arrays, digest
from vaerun.data.cache import load_arrays, load_built_in
from vaerun.errors import InputError

RNG = np.random.RandomState(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.randint(0, 256, shape).astype(np.uint8)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; those in `halved` break off half-way, and no body goes out before `gate` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.halved: set[str] = set()
        self.requests: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name not in self.server.files:
            return self.send_error(404)
        # torchvision first asks for redirects, with a GET that carries the header "Method: HEAD".
        body = b"" if self.headers.get("Method") == "HEAD" else self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            self.server.requests[name] += 1
            self.server.gate.wait(20)
            with contextlib.suppress(ConnectionError):  # the client was killed
                self.wfile.write(body[: len(body) // 2] if name in self.server.halved else body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.gate.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("VAERUN_DATA", raising=False)
    return tmp_path / "cache"


def left_in(cache: Path) -> list[str]:
    """The contents of the cache, without lock files."""
    return sorted(file.name for file in (cache / "prepared").glob("*") if file.suffix != ".lock")


def assert_equal(got: Arrays, *expected: np.ndarray) -> None:
    for field, array in zip(("train_images", "train_labels", "test_images", "test_labels"), expected, strict=True):
        actual = getattr(got, field)
        assert actual.dtype == (np.uint8 if "images" in field else np.int64)
        np.testing.assert_array_equal(actual, array)


def refused(call: Callable[[], Any], *words: str) -> None:
    """`call` raises an InputError whose message is one line with these words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def serve_mnist(server: Server, monkeypatch: pytest.MonkeyPatch, kind: str = "MNIST") -> list[np.ndarray]:
    parts = [pixels(6, 28, 28), pixels(6) % 10, pixels(4, 28, 28), pixels(4) % 10]
    resources = []
    for i, array in enumerate(parts):
        name = f"{('train', 't10k')[i // 2]}-{('images-idx3', 'labels-idx1')[i % 2]}-ubyte.gz"
        head = struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape)
        server.files[name] = content = gzip.compress(head + array.tobytes())
        resources.append((name, md5(content)))
    monkeypatch.setattr(getattr(datasets, kind), "mirrors", [server.url])
    monkeypatch.setattr(getattr(datasets, kind), "resources", resources)
    return [parts[0][:, None], parts[1], parts[2][:, None], parts[3]]


@pytest.mark.parametrize("kind", ["MNIST", "FashionMNIST"])
def test_mnist_formats(kind: str, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    expected = serve_mnist(server, monkeypatch, kind)
    arrays = load_built_in({"MNIST": "mnist", "FashionMNIST": "fashion_mnist"}[kind])
    assert_equal(arrays, *expected)
    assert arrays.split == "official"
    assert arrays.sha256 == digest(arrays)
    assert capfd.readouterr() == ("", "")


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as CIFAR-10's authors wrote it: protocol 2 by Python 2, whose strings and booleans newer ones lack."""
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"J" + struct.pack("<i", data.shape[0]) + b"J" + struct.pack("<i", data.shape[1]) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + dtype
    array += b"\x89T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + b"".join(b"K%c" % label for label in labels) + b"eu."


def test_cifar10_format(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pixels(18, 3, 32, 32), pixels(18) % 10
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    batches = zip(images.reshape(6, 3, -1), labels.reshape(6, 3).tolist(), strict=True)
    members = {name: python2_pickle(*batch) for name, batch in zip(names, batches, strict=True)}
    members["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")}, protocol=2)
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as tar:
        for name, content in members.items():
            (info := tarfile.TarInfo(f"cifar-10-batches-py/{name}")).size = len(content)
            tar.addfile(info, io.BytesIO(content))
    server.files["cifar.tar.gz"] = buffer.getvalue()
    sums = [[name, md5(members[name])] for name in names]
    monkeypatch.setattr(CIFAR10, "url", server.url + "cifar.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setitem(CIFAR10.meta, "md5", md5(members["batches.meta"]))
    assert_equal(load_built_in("cifar10"), images[:15], labels[:15], images[15:], labels[15:])


def test_svhn_format(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    table, expected = {}, []
    for part, count in (("train", 12), ("test", 5)):
        images, labels = pixels(count, 3, 32, 32), np.arange(count) % 10
        raw = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]}
        savemat(buffer := io.BytesIO(), raw, do_compression=True)
        server.files[f"{part}.mat"] = buffer.getvalue()
        table[part] = [server.url + f"{part}.mat", f"{part}.mat", md5(buffer.getvalue())]
        expected += [images, labels]
    monkeypatch.setattr(SVHN, "split_list", table)
    assert_equal(load_built_in("svhn"), *expected)


def test_omniglot_format_and_recipe(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[bytes, tuple[int, int]] = {}
    sums = {}
    # Written in an unsorted order, which must not affect the labels.
    background, evaluation = {"B/character01": 2, "A/character02": 1, "A/character01": 0}, {"A/character01": 3}
    for part, characters in {"images_background": background, "images_evaluation": evaluation}.items():
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            for character, label in characters.items():
                for drawer in range(20, 0, -1):
                    image = Image.fromarray(pixels(105, 105)).convert("1", dither=Image.Dither.NONE)
                    image.save(png := io.BytesIO(), "png")
                    archive.writestr(f"{part}/{character}/{label:04}_{drawer:02}.png", png.getvalue())
                    small = ImageOps.invert(image.convert("L")).resize((28, 28), Image.Resampling.LANCZOS)
                    known[np.asarray(small).tobytes()] = (label, drawer)
        server.files[f"{part}.zip"] = buffer.getvalue()
        sums[part] = md5(buffer.getvalue())
    monkeypatch.setattr(Omniglot, "download_url_prefix", server.url.rstrip("/"))
    monkeypatch.setattr(Omniglot, "zips_md5", sums)
    arrays = load_built_in("omniglot")
    assert arrays.test_images is not None
    train, test = ([known[image.tobytes()] for image in part] for part in (arrays.train_images, arrays.test_images))
    np.testing.assert_array_equal(arrays.train_labels, [label for label, _ in train])
    np.testing.assert_array_equal(arrays.test_labels, [label for label, _ in test])
    assert len(set(train + test)) == 80
    assert Counter(label for label, _ in train) == dict.fromkeys(range(4), 15)
    assert Counter(label for label, _ in test) == dict.fromkeys(range(4), 5)
    # The recipe of the prepared file, whose drawer numbers these lines reproduce for all 1,623 characters.
    generator = np.random.RandomState(20240501)
    drawn = [np.sort(generator.permutation(20)[:15]) + 1 for _ in range(4)]
    listed = [(label, drawer) for label in range(4) for drawer in drawn[label].tolist()]
    assert train == [listed[i] for i in generator.permutation(60)]
    assert "15" in arrays.split
    assert arrays.split != "official"


def test_wrong_checksum_leaves_nothing(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    serve_mnist(server, monkeypatch)
    server.files["t10k-labels-idx1-ubyte.gz"] += b"!"
    refused(lambda: load_built_in("mnist"), "mnist", "t10k-labels", "corrupted")
    assert left_in(cache) == []


def _somebody_s(scratch: Path) -> Arrays:
    raise FileNotFoundError(2, "No such file or directory", "squares.npy")


def test_a_source_of_somebody_s_is_no_download(cache: Path) -> None:
    """Its own words, and no command that knows nothing of it."""
    with pytest.raises(InputError) as caught:
        load_arrays("squares", _somebody_s)
    said = str(caught.value)
    assert said.startswith(f"squares: its source {__name__}._somebody_s failed (")
    assert "squares.npy" in said
    assert "vaerun-data" not in said
    assert left_in(cache) == []


def test_interrupted_download_then_whole(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    expected = serve_mnist(server, monkeypatch)
    server.halved.add("t10k-images-idx3-ubyte.gz")
    refused(lambda: load_built_in("mnist"), "download failed")
    assert left_in(cache) == []
    server.halved.clear()
    assert_equal(load_built_in("mnist"), *expected)


def test_no_network(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path, capsys: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{closed.getsockname()[1]}/"])
        monkeypatch.setenv("VAERUN_DATA", str(tmp_path))
        wanted = str(tmp_path / "mnist.npz")
        refused(
            lambda: load_built_in("mnist"), "mnist:", wanted, "refused", "vaerun-data mnist --output DIR", str(tmp_path)
        )
        assert main(["mnist"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vaerun-data: error: mnist: ")
    assert error.count("\n") == 1
    assert left_in(cache) == []


def start(server: Server) -> subprocess.Popen[str]:
    code = (
        "import json, sys; from torchvision.datasets import MNIST; from vaerun.data.cache import load_built_in;"
        "MNIST.mirrors, MNIST.resources = json.loads(sys.argv[1]); print(load_built_in('mnist').sha256)"
    )
    table = json.dumps([[server.url], MNIST.resources])
    return subprocess.Popen([sys.executable, "-c", code, table], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_download_once(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    expected = serve_mnist(server, monkeypatch)
    server.gate.clear()  # the first one stays in its download until the second one waits for it
    processes = [start(server), start(server)]
    wait_for(lambda: sum(server.requests.values()) == 1)
    time.sleep(0.5)
    server.gate.set()
    sums = {process.communicate(timeout=30)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert server.requests == dict.fromkeys(server.files, 1)
    arrays = load_built_in("mnist")
    assert sums == {arrays.sha256}
    assert_equal(arrays, *expected)
    assert len(left_in(cache)) == 1


def test_killed_preparation_is_cleared(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    expected = serve_mnist(server, monkeypatch)
    server.gate.clear()
    with start(server) as process:
        wait_for(lambda: sum(server.requests.values()) == 1)
        process.kill()
    assert left_in(cache) == ["mnist.partial"]
    server.gate.set()
    assert_equal(load_built_in("mnist"), *expected)
    assert [name.split("-")[0] for name in left_in(cache)] == ["mnist"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
