"""Generators and discriminators: shapes, normalisation where DCGAN has it, spectral norms by SVD."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models.adversarial import make_model
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from vaerun.errors import InputError
from vaerun.nets import ConvDiscriminator, ConvGenerator, MLPDiscriminator, MLPGenerator

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 9, 13), (1, 12, 9)]
NETWORKS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mlp": (MLPGenerator, MLPDiscriminator, {"hidden": [7, 6]}),
    "conv": (ConvGenerator, ConvDiscriminator, {"width": 2}),
    "conv and dense": (ConvGenerator, ConvDiscriminator, {"width": 2, "dense": [5, 7]}),
    "one layer": (MLPGenerator, MLPDiscriminator, {"hidden": []}),
}


def shaken(module: nn.Module) -> nn.Module:
    """With parameters that make everything visible."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
    return module


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_shapes(kind: str, shape: tuple[int, int, int], classes: int) -> None:
    generator, discriminator, options = NETWORKS[kind]
    g = shaken(generator(4, shape, classes, **options)).eval()
    d = shaken(discriminator(shape, classes, **options))
    c = torch.eye(3)[[0, 1, 2, 0, 1]] if classes else None
    z = torch.randn(2, 5, 4)
    x = g(z, c)
    assert x.shape == (2, 5, *shape)
    assert 0.1 < x.abs().max() <= 1
    torch.testing.assert_close(x, torch.stack([g(row, c) for row in z]))  # leading dimensions are a loop
    deeper = g(z.view(2, 1, 5, 4), c)
    assert torch.equal(deeper, x.view(2, 1, 5, *shape))
    features = d(x[0], c)
    assert features.shape == (5, d.features)
    maps = d.feature_maps(x[0], c)
    if maps:
        torch.testing.assert_close(maps[-1].flatten(1), features)
    if "conv" in kind:
        sizes, (height, width) = [], shape[1:]
        while min(height, width) >= 8:
            height, width = height // 2, width // 2
            sizes.append((height, width))
        expected = [(5, 2 * 2**i, *size) for i, size in enumerate(sizes)] + [(5, w) for w in options.get("dense", ())]
        assert [m.shape for m in maps] == expected
        assert d.features == maps[-1][0].numel()


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_images_stay_within_one(kind: str) -> None:
    g = make_model(kind).generator.eval()
    x = g(4 * torch.randn(200, 3))
    assert x.abs().max() <= 1  # tanh, rounded
    assert x.min() < -0.6
    assert x.max() > 0.6


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_labels_matter(kind: str) -> None:
    generator, discriminator, options = NETWORKS[kind]
    g = generator(4, (1, 8, 8), 3, **options).eval()
    d = discriminator((1, 8, 8), 3, **options).eval()
    z, x = torch.randn(1, 4).expand(3, 4), torch.rand(1, 1, 8, 8).expand(3, 1, 8, 8)
    for rows in (g(z, torch.eye(3)), d(x, torch.eye(3))):
        flat = rows.flatten(1)
        assert torch.cdist(flat, flat)[~torch.eye(3, dtype=torch.bool)].min() > 0


def test_label_is_one_more_channel_with_a_picture_of_its_own() -> None:
    d = ConvDiscriminator((1, 8, 8), 3, width=2)
    assert d.convolutions[0].in_channels == 2
    pictures = d.label_channel.weight.T.view(3, 1, 8, 8)
    expected = d.convolutions[0](torch.cat([torch.ones(1, 1, 8, 8), pictures[2:]], 1))
    expected = torch.where(expected > 0, expected, 0.2 * expected)
    torch.testing.assert_close(d(torch.ones(1, 1, 8, 8), torch.eye(3)[2:]), expected.flatten(1))


@pytest.mark.parametrize("size", [(7, 9), (4, 64), (1, 1)])
def test_small_images_are_refused(size: tuple[int, int]) -> None:
    for make in (lambda s: ConvGenerator(4, s, width=2), lambda s: ConvDiscriminator(s, width=2)):
        with pytest.raises(InputError, match=r"too small for network=dcgan.*network=gan_mlp") as refused:
            make((1, *size))
        assert "\n" not in str(refused.value)
        assert f"{size[0]}x{size[1]}" in str(refused.value)


@pytest.mark.parametrize("bad", [0, -2, 2.5, True])
def test_widths_are_checked(bad: Any) -> None:
    makers = [
        ("generator.width", lambda: ConvGenerator(4, (1, 8, 8), width=bad)),
        ("discriminator.width", lambda: ConvDiscriminator((1, 8, 8), width=bad)),
        ("generator.dense", lambda: ConvGenerator(4, (1, 8, 8), width=2, dense=[bad])),
        ("discriminator.dense", lambda: ConvDiscriminator((1, 8, 8), width=2, dense=[bad])),
        ("generator.hidden", lambda: MLPGenerator(4, (1, 8, 8), hidden=[bad])),
        ("discriminator.hidden", lambda: MLPDiscriminator((1, 8, 8), hidden=[bad])),
    ]
    for where, make in makers:
        with pytest.raises(InputError, match=where):
            make()


def test_initial_weights() -> None:
    """N(0, 0.02^2) for weights, N(1, 0.02^2) for batch normalisation's scales, biases zero."""
    options: dict[str, Any] = {"width": 16, "dense": [90]}
    modules = [ConvGenerator(100, (3, 32, 32), **options), ConvDiscriminator((3, 32, 32), **options)]
    layers_checked = 0
    for layer in (m for module in modules for m in module.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d):
            n = layer.weight.numel()
            centre = 1.0 if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) else 0.0
            assert abs(layer.weight.mean() - centre) < 4 * 0.02 / n**0.5
            assert abs(layer.weight.std() - 0.02) < 4 * 0.02 / (2 * n) ** 0.5
            assert layer.bias is None or bool((layer.bias == 0).all())
            layers_checked += 1
    assert layers_checked == (1 + 3 + 3) + (3 + 2) + 2 * 2


def scaled(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight.mul_(7)
        if getattr(layer, "bias", None) is not None:
            layer.bias.mul_(7)


def changes(module: nn.Module, layer: nn.Module, output: Any) -> bool:
    """Whether seven times a layer's weights change the output: batch normalisation takes any scale out."""
    before = output(module)
    scaled(layer)
    after = output(module)
    return not torch.allclose(before, after, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_batch_norm_where_dcgan_says(batch_norm: bool) -> None:
    z, x = torch.randn(16, 4), torch.rand(16, 1, 32, 32)
    g = shaken(ConvGenerator(4, (1, 32, 32), width=3, dense=[6], batch_norm=batch_norm))
    layers = [g.dense[0][0], g.project, *g.convolutions]
    assert len(layers) == 5
    results = [changes(g, layer, lambda m: m(z)) for layer in layers]
    assert results == [not batch_norm] * 4 + [True]  # all but the output
    d = shaken(ConvDiscriminator((1, 32, 32), width=3, dense=[6], batch_norm=batch_norm))
    assert d.batch_norm is batch_norm
    results = [changes(d, layer, lambda m: m.feature_maps(x)[-1]) for layer in [*d.convolutions[1:], d.dense[0][0]]]
    assert results == [not batch_norm] * 3
    # Of one layer, which is the first, nothing is left to normalise.
    assert not ConvDiscriminator((1, 8, 8), width=3, batch_norm=batch_norm).batch_norm
    assert ConvDiscriminator((1, 8, 8), width=3, dense=[6], batch_norm=batch_norm).batch_norm is batch_norm
    # The first layer is scaled freely, and an image's own map there is of that image alone.
    assert changes(d, d.convolutions[0], lambda m: m.feature_maps(x)[0])
    torch.testing.assert_close(d.feature_maps(x)[0][:2], d.feature_maps(x[:2])[0])
    assert torch.allclose(d.feature_maps(x)[1][:2], d.feature_maps(x[:2])[1]) is not batch_norm


def test_activations() -> None:
    """ReLU in the generator, leaky ReLU of slope 0.2 in the discriminator, on both kinds of networks."""
    x = torch.randn(9, 1, 8, 8)
    for d in (MLPDiscriminator((1, 8, 8), hidden=[5]), ConvDiscriminator((1, 8, 8), width=3)):
        inner = d.layers[0](x.flatten(1)) if isinstance(d, MLPDiscriminator) else d.convolutions[0](x)
        assert inner.min() < 0 < inner.max()
        torch.testing.assert_close(d(x), torch.where(inner > 0, inner, 0.2 * inner).flatten(1))
    g = MLPGenerator(4, (1, 8, 8), hidden=[5])
    z = torch.randn(6, 4)
    expected = torch.tanh(g.output(g.layers[0](z).clamp(min=0)))
    torch.testing.assert_close(g(z).flatten(1), expected)
    g = ConvGenerator(4, (1, 8, 8), width=3).eval()
    inner = g.project(z).view(6, *g.start) / (1 + g.norms[0].eps) ** 0.5 * g.norms[0].weight.view(-1, 1, 1)
    torch.testing.assert_close(g(z), torch.tanh(g.convolutions[0](inner.clamp(min=0))))
    # Dense layers, before the generator's convolutions and after the discriminator's.
    plain: dict[str, Any] = {"width": 3, "dense": [5], "batch_norm": False}
    g, d = shaken(ConvGenerator(4, (1, 8, 8), **plain)), shaken(ConvDiscriminator((1, 8, 8), **plain))
    inner = g.project(g.dense[0][0](z).clamp(min=0)).view(6, *g.start)
    torch.testing.assert_close(g(z), torch.tanh(g.convolutions[0](inner.clamp(min=0))))
    inner = d.dense[0][0](d.feature_maps(x)[0].flatten(1))
    torch.testing.assert_close(d(x), torch.where(inner > 0, inner, 0.2 * inner))


def label_channel(d: nn.Module) -> nn.Module | None:
    """A lookup of pictures: what it gives does not depend on the image."""
    return getattr(d.trunk, "label_channel", None)


@pytest.mark.parametrize("kind", ["mlp", "conv", "conv and dense"])
@pytest.mark.parametrize("wanted", [True, False])
def test_spectral_norm_is_one(kind: str, wanted: bool) -> None:
    """Once the power iteration has converged, by singular values; the head included."""
    dense = {"dense": [5]} if "dense" in kind else {}
    plain = {"batch_norm": False} if "conv" in kind else {}  # which would undo it
    model = make_model(kind, classes=3, spectral_norm=wanted, **dense, **plain)
    d, x, c = model.discriminator, torch.rand(2, 1, 16, 16), torch.eye(3)[:2]
    layers = [m for m in d.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m is not label_channel(d)]
    assert len(layers) == 3 + len(dense)
    assert [is_parametrized(layer) for layer in layers] == [wanted] * len(layers)
    with torch.no_grad():
        for _ in range(300):
            d(x, c)
    largest = [torch.linalg.svdvals(layer.weight.flatten(1))[0] for layer in layers]
    if wanted:
        torch.testing.assert_close(torch.stack(largest), torch.ones(len(layers)), rtol=1e-6, atol=0)
        d.eval()
        vectors: list[Tensor] = [p._u.clone() for layer in layers for p in layer.parametrizations.weight]
        d(x, c)  # evaluation does not estimate further
        assert all(map(torch.equal, vectors, [p._u for layer in layers for p in layer.parametrizations.weight]))
    else:
        assert min(abs(s - 1) for s in largest) > 1e-3


def test_spectral_norm_that_batch_norm_would_undo_is_refused() -> None:
    with pytest.raises(InputError, match=r"spectral_norm has no effect .*model\.discriminator\.batch_norm=false"):
        ConvDiscriminator((1, 16, 16), width=2, spectral_norm=True)
    ConvDiscriminator((1, 8, 8), width=2, spectral_norm=True)  # a single layer has no batch norm
