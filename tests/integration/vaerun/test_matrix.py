"""Every combination of estimator and model: docs/estimators.md tabulates which of them train."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import hydra
import pytest
import torch

from vaerun.config.plugins import builtin_config_dir
from vaerun.config.schema import Settings
from vaerun.config.settings import to_settings
from vaerun.data.dataset import ImageData
from vaerun.errors import InputError
from vaerun.run.build import build_data, build_model, build_objective, dry_run

DOCUMENT = Path(__file__).parents[3] / "docs" / "estimators.md"
PRIOR = " + label prior"  # model.conditional=true model.conditional_prior=true

ESTIMATORS = (
    "elbo",
    "elbo_mc",
    "stl",
    "iwae",
    "dreg",
    "renyi",
    "score_function",
    "wake_sleep",
    "reconstruction",
    "gan_nonsaturating",
    "gan_minimax",
)
ADVERSARIAL = ("gan", "dcgan", "cgan", "infogan")
MODELS = ("vae", "vae_full", "vae_hf", "vae_iaf", "sa_vae", "vlae", "draw", "ppca", "cvae", "vae_hf" + PRIOR, "ae")

TINY = ["data.validation=20", "data.train_images=40"]
SMALL_DRAW = ["model.decoder.hidden=16", "model.encoder.hidden=16", "model.decoder.steps=3", "model.latent_dim=6"]


@cache
def compose(*words: str) -> Settings:
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return to_settings(hydra.compose("config", [*TINY, *words]))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return build_data(compose().data, torch.device("cpu"))


def outcome(estimator: str, model: str, digits: ImageData) -> str:
    """`yes`, or the remedy that the error names."""
    words = [f"model={model.removesuffix(PRIOR)}", *(SMALL_DRAW if model == "draw" else [])]
    if model in ("dcgan", "infogan"):
        words += ["model.generator.width=2", "model.discriminator.width=2"]
    if model == "ppca":
        words.append("model.fit=gradient")
    if model.endswith(PRIOR):
        words += ["model.conditional=true", "model.conditional_prior=true"]
    estimator_settings = replace(compose(f"estimator={estimator}").estimator, samples=3)
    settings = replace(compose(*words), estimator=estimator_settings)
    torch.manual_seed(0)
    built = build_model(settings.model, digits.spec)
    try:
        objective = build_objective(settings, built, len(digits.train))
        dry_run(settings.model, objective, digits)
    except InputError as error:
        text = str(error)
        assert "\n" not in text
        for remedy in ("gan_nonsaturating", "elbo_mc", "reconstruction", "elbo"):
            if f"use estimator={remedy}" in text:
                return f"no: {remedy}"
        raise
    # What is accepted trains: every parameter has a finite gradient, or none if the estimator does not use it.
    for phase in objective.phases:
        loss, metrics = objective.loss(phase, 0, digits.train.batch(0, 4))
        assert bool(torch.isfinite(loss).all())
        assert all(bool(torch.isfinite(v).all()) for v in metrics.values())
        loss.mean().backward()
    gradients = {n: p.grad for n, p in built.named_parameters() if p.requires_grad}
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients.values())
    parts = ("decoder", "inference", "generator", "discriminator")
    assert all(g is not None for n, g in gradients.items() if n.startswith(parts)), model
    return "yes"


def table(models: tuple[str, ...], digits: ImageData) -> str:
    rows = [["estimator", *models], ["---"] * (len(models) + 1)]
    rows += [[f"`{e}`", *(outcome(e, m, digits) for m in models)] for e in ESTIMATORS]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@pytest.mark.parametrize("models", [MODELS, ADVERSARIAL], ids=["likelihood", "adversarial"])
def test_the_documented_table_is_what_happens(
    models: tuple[str, ...], single_precision: None, digits: ImageData
) -> None:
    actual = table(models, digits)
    assert actual in DOCUMENT.read_text(encoding="utf-8"), f"docs/estimators.md should have:\n{actual}"


def test_every_estimator_and_model_is_in_the_table() -> None:
    def named(group: str) -> set[str]:
        return {p.stem for p in (builtin_config_dir() / group).glob("*.yaml")}

    assert named("estimator") == set(ESTIMATORS)
    assert named("model") == {m.removesuffix(PRIOR) for m in MODELS + ADVERSARIAL}
