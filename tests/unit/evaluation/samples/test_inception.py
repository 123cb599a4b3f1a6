"""Inception features: what is refused, and that they are the package's own, with random weights."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vaerun.errors import InputError, RunError
from vaerun.evaluation.samples.inception import BATCH, check_inception, inception_features

# -- refusals, which need no package ----------------------------------------------------------------------------------


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)


@pytest.fixture
def plausible(tmp_path: Path) -> Path:
    """A state_dict that has the last layer of FID's network, and nothing else of it."""
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_no_file(tmp_path):
    missing = tmp_path / "no" / "weights.pth"
    for path in (missing, tmp_path):
        assert str(path) in refusal(lambda path=path: check_inception(path))
        assert str(path) in refusal(lambda path=path: inception_features(path, device="cpu"))


def test_no_package(plausible, without_package):
    message = refusal(lambda: check_inception(plausible))
    assert "pip install 'vaerun[fid]'" in message
    assert message == refusal(lambda: inception_features(plausible, device="cpu"))


def test_no_weights_file(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, path)
    whole = path.read_bytes()
    contents: dict[str, bytes] = {
        "empty": b"",
        "text": b"not found\n",
        "noise": bytes(range(256)) * 40,
        "pickled": pickle.dumps({"fc.weight": [1.0]}),
        "cut short": whole[: len(whole) // 2],
    }
    for name, value in {
        "list": [torch.zeros(2)],
        "nested": {"model": {"a": torch.zeros(2)}},
        "number": {"a": 1},
    }.items():
        buffer = io.BytesIO()
        torch.save(value, buffer)
        contents[name] = buffer.getvalue()
    for name, content in contents.items():
        path.write_bytes(content)
        message = refusal(lambda: check_inception(path))
        assert str(path) in message, name
        assert "state_dict" in message, name


def test_another_network_of_that_name(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, path)
    assert "(1000, 2048)" in refusal(lambda: check_inception(path))
    torch.save({"conv.weight": torch.zeros(3)}, path)
    assert "fc.weight is missing" in refusal(lambda: check_inception(path))


class Trap:
    """Makes a folder when a pickle of it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_the_file_is_not_run(tmp_path):
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    torch.save({"fc.weight": torch.zeros(1008, 2048), "trap": Trap(sprung)}, path)
    assert "state_dict" in refusal(lambda: check_inception(path))
    assert not sprung.exists()
    torch.load(path, weights_only=False)  # what the package does: the trap is a real one
    assert sprung.exists()


# -- with the package -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_network() -> Any:
    """The package's own network with random weights under which activations neither vanish nor grow."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    class Unloaded(extractor):  # type: ignore[misc, valid-type]
        def load_state_dict(self, *_: object, **__: object) -> None:
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing)
    source = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.dim() > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=source)
    return network


@pytest.fixture(scope="module")
def weights(random_network: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(random_network.state_dict(), path)
    yield path
    path.unlink()  # 100 MB


def pixels(n: int, channels: int, seed: int) -> Tensor:
    """uint8 [n, C, 9, 9], in blocks: the network shrinks white noise to one grey."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (n, channels, 3, 3), generator=source, dtype=torch.uint8)
    return coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)


@pytest.mark.slow
def test_the_features_are_the_network_s(random_network, weights, single_precision):
    state = torch.random.get_rng_state()
    features = inception_features(weights, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    for channels in (1, 3):
        raw = pixels(5, channels, channels)
        result = features(raw / 255)
        assert result.shape == (5, 2048)
        assert result.dtype == torch.float32
        expected = random_network(raw if channels == 3 else torch.cat([raw, raw, raw], 1))[0]
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert (expected.std(0) > 1e-3 * expected.abs().mean()).double().mean() > 0.5  # they depend on the image
        # A generator's values lie between the levels, and a little outside.
        near = raw / 255 + 0.4 / 255 * (2 * torch.rand(raw.shape) - 1)
        assert torch.equal(features(near), result)
    ends = (pixels(2, 1, 9) > 127).to(torch.float32)
    assert torch.equal(features(1.5 * ends - 0.25), features(ends))
    assert features(torch.zeros(0, 3, 9, 9)).shape == (0, 2048)


def test_images_are_taken_in_order_and_in_batches(weights, monkeypatch, single_precision):
    monkeypatch.setattr("vaerun.evaluation.samples.inception.BATCH", 2)
    features = inception_features(weights, device="cpu")
    images = pixels(5, 1, 7) / 255
    whole = features(images)
    for row in (0, 3, 4):
        torch.testing.assert_close(features(images[row : row + 1])[0], whole[row], rtol=1e-4, atol=1e-5)
    assert BATCH > 2


@pytest.mark.slow
def test_fid_is_the_package_s(weights, single_precision):
    import torch_fidelity

    class Pictures(torch.utils.data.Dataset[Tensor]):
        def __init__(self, raw: Tensor) -> None:
            self.raw = raw

        def __len__(self) -> int:
            return len(self.raw)

        def __getitem__(self, row: int) -> Tensor:
            return self.raw[row].expand(3, -1, -1)

    first, second = pixels(8, 1, 1), pixels(7, 1, 2) // 2
    expected = torch_fidelity.calculate_metrics(
        input1=Pictures(first),
        input2=Pictures(second),
        fid=True,
        feature_extractor_weights_path=str(weights),
        cuda=False,
        verbose=False,
        cache=False,
        save_cpu_ram=True,
        batch_size=4,
    )["frechet_inception_distance"]
    features = inception_features(weights, device="cpu")
    x, y = (features(raw / 255).double() for raw in (first, second))
    # With A, B the centred features over sqrt(n - 1): tr sqrt(A'A B'B) is the sum of the singular values of A B'.
    a, b = ((v - v.mean(0)) / (len(v) - 1) ** 0.5 for v in (x, y))
    cross = torch.linalg.svdvals(a @ b.mT).sum()
    fid = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    assert float(fid) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused(plausible, random_network, tmp_path):
    assert "Missing key" in refusal(lambda: check_inception(plausible))
    state = random_network.state_dict()
    path = tmp_path / "other.pth"
    torch.save({**state, "more": torch.zeros(1)}, path)
    assert "more" in refusal(lambda: check_inception(path))
    torch.save({**state, "Conv2d_1a_3x3.conv.weight": torch.zeros(32, 1, 3, 3)}, path)
    assert "size mismatch" in refusal(lambda: check_inception(path))
    path.unlink()


def test_the_package_is_never_given_the_file(weights, monkeypatch):
    load, given = torch.load, []

    def spy(file: Any, **options: Any) -> Any:
        given.append((file, options.get("weights_only")))
        return load(file, **options)

    monkeypatch.setattr(torch, "load", spy)
    check_inception(weights)
    (ours, safely), (theirs, _) = given
    assert isinstance(ours, io.BytesIO)  # an archive made anew of what was looked at
    assert safely is True
    assert isinstance(theirs, io.BytesIO)


def test_the_file_is_identified(weights):
    assert check_inception(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_images_that_cannot_be_used(weights):
    features = inception_features(weights, device="cpu")
    assert "4 channels" in refusal(lambda: features(torch.zeros(1, 4, 9, 9)))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(RunError, match="finite"):
            features(torch.full((1, 1, 9, 9), bad))
