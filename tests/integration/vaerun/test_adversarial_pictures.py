"""Pictures of adversarial runs: samples, classes, codes, traversals. Each tile is the image of its noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.runs.adversarial_runs import (
    CGAN,
    CODES,
    FAST,
    GAN,
    INFOGAN,
    RESUMED,
    SETS,
    Command,
    FinishedRun,
    added,
    assert_close,
    assert_shows,
    environment,
    labels,
    levels,
    opened,
    pixels,
    shown,
    tiles,
)
from support.runs.commands import assert_same_bits, load, tensorboard
from support.runs.evaluating import Evaluate, result

from vaerun.evaluation.latent.traversals import slerp
from vaerun.evaluation.plots.pictures import sample_noise

pytestmark = pytest.mark.usefixtures("command_environment")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory)


# --- pictures ---


def test_samples_are_the_averaged_generator_s(finished: Callable[..., FinishedRun]) -> None:
    """Including batch statistics; the last parameters are the best."""
    run = finished(*RESUMED["dcgan"])
    model, _ = opened(run.folder)
    noise = sample_noise(range(100), 4, model.zero)
    assert_shows(run.folder, "samples", model.generate(noise))
    with torch.no_grad():
        assert_shows(run.folder, "samples", (model.average(noise) + 1) / 2)  # type: ignore[misc]
        plain = (model.generator(noise) + 1) / 2
    samples = tiles(pixels(run.folder / "figures" / "samples.png"), (1, 8, 8)).flatten(0, 1)
    assert float((samples != levels(plain)).float().mean()) > 0.5
    best, last = load(run.folder, "best"), load(run.folder)
    assert_same_bits(best["objective"], last["objective"])
    assert best["epoch"] == 4.0
    assert any(name.startswith("model.average.") for name in best["objective"])


def test_samples_are_the_same_noise_at_every_step(here: Command, tmp_path: Path) -> None:
    """Frozen parameters give the same pictures, whatever noise training has drawn meanwhile."""
    rates = ["trainer.learning_rate=1e-30", "trainer.average=null", "trainer.max_steps=12"]
    assert here(*INFOGAN, *rates, "evaluation.quality=false", f"output_dir={tmp_path / 'run'}")[0] == 0
    events = tensorboard(tmp_path / "run")
    for name in ("samples", *CODES):
        images = events.Images(f"images/{name}")
        assert {e.step for e in images} == {4, 8, 12}
        (shown,) = {e.encoded_image_string for e in images}
        (tmp_path / "shown.png").write_bytes(shown)
        file = pixels(tmp_path / "run" / "figures" / f"{name}.png")
        assert int((pixels(tmp_path / "shown.png").int() - file.int()).abs().max()) <= 1  # TensorBoard rounds down


def test_classes_and_samples_share_their_noise(finished: Callable[..., FinishedRun]) -> None:
    """Sample i < 10, whose label is i, is in column i of that class's row."""
    run = finished(*CGAN)
    model, data = opened(run.folder)
    numbers = list(range(10))
    noise = sample_noise(numbers, 4, model.zero)
    every = [model.generate(noise, labels(data, [row] * 10)) for row in numbers]
    assert_shows(run.folder, "classes", torch.cat(every))
    shown = {n: tiles(pixels(run.folder / "figures" / f"{n}.png"), (1, 8, 8)) for n in ("samples", "classes")}
    for i in numbers:
        difference = shown["samples"][0, i].int() - shown["classes"][i, i].int()
        assert int(difference.abs().max()) <= 1


def test_a_row_of_a_code_holds_the_sample_itself(finished: Callable[..., FinishedRun]) -> None:
    """Where the code has the value of sample i itself, the tile is that sample."""
    run = finished(*INFOGAN)
    model, _ = opened(run.folder)
    noise = sample_noise(range(10), model.noise_dim, model.zero)
    code = model.generator_inputs(noise)[1]
    assert code is not None
    shown = {n: tiles(pixels(run.folder / "figures" / f"{n}.png"), (1, 8, 8)) for n in ("samples", CODES[0])}
    for i in range(10):
        tile = shown[CODES[0]][i, int(code[i, :10].argmax())]
        assert int((shown["samples"][0, i].int() - tile.int()).abs().max()) <= 1
    for index, name in enumerate(CODES):
        values = torch.arange(10) if index == 0 else torch.linspace(-2, 2, 10)
        swept = model.generate_with_code(noise.repeat_interleave(10, 0), index, values.repeat(10))
        assert_shows(run.folder, name, swept)


# --- traversals of the noise ---


def test_walks(copied: Callable[..., Path], evaluate: Evaluate) -> None:
    run = copied(*GAN)
    words = ["evaluation.interpolation=[3,a,one]", "evaluation.arithmetic=[one - 2 + 17,3]"]
    assert evaluate(f"run={run}", *SETS, *words, *FAST)[0] == 0
    label, _ = added(run)
    model, _ = opened(run)
    samples = tiles(pixels(run / "figures" / "samples.png"), (1, 8, 8)).flatten(0, 1)
    z = {i: sample_noise([i], 4, model.zero)[0] for i in (1, 2, 3, 4, 17)}
    walk, first, second = (shown(run, label, n) for n in ("interpolation", "arithmetic_1", "arithmetic_2"))
    # The ends are the samples themselves.
    assert torch.equal(walk[0, 0], samples[3])
    assert torch.equal(walk[1, 7], samples[4])
    assert torch.equal(walk[0, 7], walk[1, 0])
    mean = torch.stack([z[1], z[2], z[3]]).mean(0)
    middle = mean / mean.norm() * torch.stack([z[i].norm() for i in (1, 2, 3)]).mean()
    steps = torch.linspace(0, 1, 8)
    noise = torch.cat([slerp(z[3], middle, steps), slerp(middle, z[4], steps)])
    assert_close(walk, model.generate(noise))
    # Operands in a row, then the result in the middle of three by three.
    for tile, number in zip(first[0], (4, 2, 17), strict=True):
        assert torch.equal(tile, samples[number])
    assert_close(first[2, 1][None], model.generate((z[4] - z[2] + z[17])[None]))
    assert torch.equal(second[0, 0], samples[3])
    assert torch.equal(second[2, 1], samples[3])
    assert bool((second[0, 1:] == second[0, 1, 0, 0, 0]).all())  # blank
    assert len(second[1:].flatten(0, 1).flatten(1).unique(dim=0)) == 9


def test_walks_of_a_conditional_model_are_of_the_label_asked_for(
    copied: Callable[..., Path], evaluate: Evaluate
) -> None:
    run = copied(*CGAN)
    for label in (4, 0):
        words = ["evaluation.interpolation=[3,8]", "evaluation.arithmetic=[6]", f"evaluation.label={label}"]
        assert evaluate(f"run={run}", *words, *FAST)[0] == 0
        name = list(result(run)["evaluations"])[-1]
        classes = tiles(pixels(run / "figures" / "classes.png"), (1, 8, 8))
        walk = shown(run, name, "interpolation")
        assert torch.equal(walk[0, 0], classes[label, 3])
        assert torch.equal(walk[0, 7], classes[label, 8])
        assert torch.equal(shown(run, name, "arithmetic_1")[2, 1], classes[label, 6])
