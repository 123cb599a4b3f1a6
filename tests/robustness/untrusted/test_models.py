"""An untrusted model that can be built and loaded but fails to run, or exceeds any memory, is reported in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.robustness.untrusted import assert_rejected, edit_config, open_all, peak_bytes, write_fitting_checkpoint
from support.runs.adversarial_runs import GAN, INFOGAN, NETWORKS, QUICK
from support.runs.evaluating import SMALL
from torch import Tensor, nn

import vaerun
from vaerun.errors import InputError
from vaerun.run import smoke_test as trial
from vaerun.run.load import Run

DRAW_ENCODER = {"_target_": "vaerun.nets.DrawEncoder", "hidden": 8, "read_size": None, "decoder_hidden": 8}
MISPLACED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a generator as decoder": (
        lambda m: m.update(decoder={"_target_": "vaerun.nets.MLPGenerator", "hidden": [8]}),
        "has no attribute 'affine'",
    ),
    "DRAW's encoder": (lambda m: m.update(encoder=DRAW_ENCODER), "use model=draw"),
    "a state as decoder": (
        lambda m: m.update(decoder={"_target_": "vaerun.nets.draw.DecoderState"}),
        "'DecoderState' object",
    ),
    "a factor as posterior": (
        lambda m: m.update(inference={"_target_": "vaerun.inference.factor.Factor"}),
        "'Factor' object is not callable",
    ),
}


def no_model(run: Path, capsys: Any, cache: Path, *words: str) -> None:
    text = assert_rejected(run, capsys, cache, f"the model of {run} does not run", *words)
    assert all(line.startswith("vaerun") for line in text.splitlines() if "does not run" in line)


@pytest.mark.parametrize("name", MISPLACED)
def test_parts_that_are_made_and_do_not_run(stranger: Path, capsys: Any, cache: Path, name: str) -> None:
    change, message = MISPLACED[name]
    edit_config(stranger, lambda plain: change(plain["model"]))
    write_fitting_checkpoint(stranger)
    no_model(stranger, capsys, cache, message)


def test_an_encoder_as_discriminator(
    copied: Callable[..., Path], command_environment: None, capsys: Any, cache: Path
) -> None:
    run = copied(*GAN)
    encoder = {"_target_": "vaerun.nets.MLPEncoder", "hidden": [8]}
    edit_config(run, lambda plain: plain["model"].update(discriminator=encoder))
    write_fitting_checkpoint(run)
    no_model(run, capsys, cache, "has no attribute 'feature_maps'")


def test_a_model_that_cannot_be_put_together(
    copied: Callable[..., Path], command_environment: None, capsys: Any, cache: Path
) -> None:
    """Each part can be built, but they do not fit together."""
    run = copied(*GAN)
    edit_config(run, lambda plain: plain["model"].update(discriminator={"_target_": "vaerun.nets.draw.EncoderState"}))
    no_model(run, capsys, cache, "'EncoderState' object has no attribute 'features'")


@pytest.mark.parametrize("part", ["Laplace", "DRAW's decoder"])
def test_a_model_whose_numbers_are_no_matter_of_its_parameters(
    stranger: Path, capsys: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Laplace inference has d x d matrices, and DRAW's decoder any number of steps, of few parameters each."""
    monkeypatch.setattr(trial, "_EXTRA_BYTES", 1 << 26)  # so that what is refused would fit, should it not be

    def change(plain: dict[str, Any]) -> None:
        model = plain["model"]
        model.update(encoder=None, inference={"_target_": "vaerun.inference.Laplace", "steps": 0}, latent_dim=4000)
        model["decoder"]["hidden"] = [1]
        if part != "Laplace":
            model["latent_dim"] = n = 10**7
            model["decoder"] = {"_target_": "vaerun.nets.DrawDecoder", "steps": n, "hidden": 8, "write_size": None}

    edit_config(stranger, change)
    write_fitting_checkpoint(stranger)
    assert (stranger / "checkpoints" / "best.pt").stat().st_size < 1 << 20
    before = peak_bytes()
    assert_rejected(stranger, capsys, cache, "needs far more memory for 2 images than for its parameters")
    assert peak_bytes() - before < 1 << 27


def test_memory_that_runs_out_in_the_trial(
    stranger: Path, capsys: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infer(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(trial, "_infer", infer)
    assert_rejected(stranger, capsys, cache, f"memory ran out for the model of {stranger}")


class Wrong(nn.Module):
    """A decoder whose images have another shape, which broadcasting would hide."""

    affine = None

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return z.sum(-1)[..., None, None, None].expand(*z.shape[:-1], *self.shape)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 1, 1)])
def test_pictures_of_another_shape(stranger: Path, shape: tuple[int, ...]) -> None:
    run = vaerun.load_run(stranger)
    run.model.decoder = Wrong(*shape)
    with pytest.raises(InputError, match=r"does not run .*has shape"):
        trial.smoke_test(run.model, stranger)


@pytest.mark.parametrize(
    "words",
    [
        ("model=vae", *SMALL),
        ("model=sa_vae", *SMALL),
        ("model=cvae", *SMALL),
        ("model=dcgan", *NETWORKS["dcgan"], *QUICK),
        (*INFOGAN, "model.discriminator.spectral_norm=true"),
    ],
    ids=["vae", "sa_vae", "cvae", "dcgan", "infogan"],
)
def test_the_trial_leaves_no_trace(
    copied: Callable[..., Path], command_environment: None, capsys: Any, words: tuple[str, ...]
) -> None:
    run: Run = vaerun.load_run(copied(*words))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    state = torch.get_rng_state()
    capsys.readouterr()
    trial.smoke_test(run.model, run.folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert not run.model.training
    assert capsys.readouterr() == ("", "")
    assert open_all(run.folder, capsys, ("load_run", "eval")).codes == {"load_run": 0, "eval": 0}
