"""Every file of every config group composes and works; combinations that cannot work are refused."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from PIL import Image
from support.models.precision import set_precision
from support.runs.commands import FAST_AMIS

from vaerun.cli.help import GROUPS, choices
from vaerun.config.plugins import builtin_config_dir
from vaerun.config.schema import Settings
from vaerun.config.settings import to_settings
from vaerun.errors import InputError
from vaerun.run.build import build_data, build_model, build_objective
from vaerun.run.experiment import Experiment

ADVERSARIAL = {"gan", "dcgan", "cgan", "infogan"}  # models; their runs are in test_adversarial_runs.py
WITH = {
    "reconstruction": "ae",
    "draw": "draw",
    **dict.fromkeys(("gan_nonsaturating", "gan_minimax", "gan_mlp", "dcgan", "adversarial"), "gan"),
}
"""Choices that work with a single model or family."""
ADVERSARIAL_EXPERIMENTS = {"infogan_mnist", "dcgan_cifar10"}
FILES = sorted(p for group in GROUPS for p in (builtin_config_dir() / group).glob("*.yaml"))
SHAPES = {
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "omniglot": (1, 28, 28),
    "svhn": (3, 32, 32),
    "cifar10": (3, 32, 32),
}
SHORT = """trainer.max_steps=2 trainer.batch_size=16 trainer.device=cpu evaluation.samples=20 evaluation.images=20
evaluation.pictures=0 data.train_images=100""".split()  # noqa: SIM905
SHORT += FAST_AMIS
DENSE = ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]"]
SMALL = {
    "mlp": ["network=mlp", *DENSE],
    "conv": ["network=conv", "model.encoder.channels=[4,4]", "model.decoder.channels=[4,4]", *DENSE],
    "draw": ["network=draw", "model.encoder.hidden=8", "model.decoder.hidden=8", "model.decoder.steps=2"],
}


@pytest.fixture(autouse=True)
def single_precision() -> Iterator[None]:
    set_precision(torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Synthetic stand-ins for the downloaded data sets and for the user's own."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.RandomState(0)
    for name, shape in SHAPES.items():
        images = random.randint(0, 256, (220, *shape)).astype(np.uint8)
        labels = np.arange(220) % 10
        parts = {"train_images": images[:180], "train_labels": labels[:180]}
        np.savez(root / f"{name}.npz", **parts, test_images=images[180:], test_labels=labels[180:])
    for i in range(150):
        file = root / "pictures" / f"class{i % 3}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (8, 8, 3)).astype(np.uint8)).save(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAERUN_DATA", str(root))
        patch.setenv("VAERUN_CACHE", str(root / "cache"))
        yield root


def compose(*overrides: str) -> Settings:
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        return to_settings(hydra.compose("config", list(overrides)))


def data_overrides(name: str, root: Path) -> list[str]:
    words = [f"data={name}", "data.validation=20"]
    own = {"npz": "mnist.npz", "file": "mnist.npz", "hf": "mnist.parquet", "folder": "pictures"}
    return words + ([f"data.path={root / own[name]}"] if name in own else [])


def write_table(path: Path) -> None:
    """The prepared MNIST as a table, with images as lists of numbers."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra hf")
    pytest.importorskip("pyarrow.parquet")
    with np.load(path.with_name("mnist.npz")) as arrays:
        columns = {"image": arrays["train_images"][:, 0].tolist(), "label": arrays["train_labels"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def names(group: str) -> list[str]:
    return sorted(choices(group, [builtin_config_dir()]))


def assert_ran(folder: Path, result: dict[str, Any]) -> None:
    """Two steps were trained and evaluated; all numbers are finite."""
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["status"] == "ok"
    numbers = {"val/elbo", "test/elbo", "test/log_likelihood"}
    if result["model"] in ADVERSARIAL:
        assert not any("elbo" in name or "likelihood" in name for name in result["metrics"])
        numbers = {"test/diversity", "test/mode_collapse"}
    if result["model"] == "ae":  # no likelihood, and no number that could be mistaken for one
        assert not any("elbo" in name or "likelihood" in name for name in result["metrics"])
        numbers = {"val/reconstruction", "test/reconstruction_error"}
    assert numbers <= result["metrics"].keys()
    assert all(math.isfinite(v) for v in result["metrics"].values())


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_file_composes_and_its_parts_are_built(path: Path, prepared: Path, tmp_path: Path) -> None:
    group, name = path.parent.name, path.stem
    if name == "hf":
        write_table(prepared / "mnist.parquet")
    words = data_overrides(name, prepared) if group == "data" else [f"{group}={name}"]
    if group == "experiment":
        words += ["data.validation=20", "data.train_images=100"]
    if name in WITH and group != "model":
        words.append(f"model={WITH[name]}")
    settings = compose(*words)
    if group in ("data", "model", "estimator"):
        assert getattr(settings, group).name == name
    data = build_data(settings.data, torch.device("cpu"))
    if group == "data":
        shapes = SHAPES | {"digits": (1, 8, 8), "folder": (3, 8, 8)} | dict.fromkeys(("npz", "file", "hf"), (1, 28, 28))
        assert data.image_shape == shapes[name]
        assert data.classes == (3 if name == "folder" else 10)
        assert len(data.validation) == 20
    if group == "experiment":  # the file's networks
        assert settings.model.latent_dim != compose().model.latent_dim or settings.trainer != compose().trainer
    model = build_model(settings.model, data.spec)
    objective = build_objective(settings, model, len(data.train))
    for phase in objective.phases:
        loss, metrics = objective.loss(phase, 0, data.train.batch(0, 3))
        reported = "elbo" if model.has_density else "reconstruction"
        if settings.model.family == "adversarial":
            reported = f"{phase}_loss"
        assert loss.shape == metrics[reported].shape == (3,)
        assert bool(torch.isfinite(loss).all())


def test_every_group_is_listed() -> None:
    folders = {p.name for p in builtin_config_dir().iterdir() if p.is_dir() and any(p.glob("*.yaml"))}
    assert folders == set(GROUPS)
    assert {p.parent.name for p in FILES} == set(GROUPS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_first_comment_is_a_help_line(path: Path) -> None:
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    if first.startswith("# @package"):
        first = rest[0]
    assert first.startswith("# ")
    assert len(first) > 12
    assert choices(path.parent.name, [builtin_config_dir()])[path.stem] == first[2:]
    assert not any(line.startswith("# @package") for line in rest)


@pytest.mark.parametrize("name", names("experiment"))
def test_experiment_opens_with_commands_that_run(name: str, prepared: Path, tmp_path: Path) -> None:
    header = []
    for line in (builtin_config_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# "))
    commands = [line.split("  (")[0] for line in header if line.startswith("vaerun ")]
    assert commands
    assert any(word in " ".join(header) for word in ("Expected", "Published"))
    for i, command in enumerate(commands):
        words = shlex.split(command)[1:]
        assert f"experiment={name}" in words
        # The header's words, with the first values of a sweep.
        words = [w.split(",")[0] for w in words if w != "-m"]
        words = [*words, "data.validation=20", *SHORT, "trainer.batch_size=100"]
        if name in ADVERSARIAL_EXPERIMENTS:
            words.remove("evaluation.samples=20")  # importance samples
            words += ["evaluation.quality=false", "model.generator.width=2", "model.discriminator.width=2"]
        result = Experiment(compose(*words), tmp_path / str(i), words).run()
        assert_ran(tmp_path / str(i), result)
        assert result["timing"]["train_steps"] == 2
        assert result["protocol"]["images"] == {"train": 100, "validation": 20, "test": 40}


def refused(model: str, network: str, likelihood: str, conditional: bool) -> str | None:
    """Why a combination is rejected: ppca is linear-Gaussian and unconditional, DRAW has its own networks."""
    if (model == "draw") != (network == "draw"):
        return "network=draw|model=draw|multiple of model.decoder.steps"
    if model == "ppca" and (network == "conv" or likelihood == "bernoulli" or conditional):
        return r"model\.fit=closed_form needs"
    return None


def combination(model: str, network: str, likelihood: str, conditional: bool) -> list[str]:
    words = [f"model={model}", f"model.conditional={str(conditional).lower()}", f"model.likelihood={likelihood}"]
    words += [w for w in SMALL[network] if model != "ppca" or w.startswith("network") or "decoder.channels" in w]
    words += ["model.latent_dim=2", *SHORT]
    return words + (["data.binarize=dynamic"] if likelihood == "bernoulli" else [])


@pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("network", ["mlp", "conv", "draw"])
@pytest.mark.parametrize("model", sorted(set(names("model")) - ADVERSARIAL))
def test_combination(model: str, network: str, likelihood: str, conditional: bool, tmp_path: Path) -> None:
    words = combination(model, network, likelihood, conditional)
    settings = compose(*words)
    why = refused(model, network, likelihood, conditional)
    if why is not None:
        with pytest.raises(InputError, match=why) as refusal:
            Experiment(settings, tmp_path, words).run()
        assert "\n" not in str(refusal.value)
        assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == []  # rejected before anything is written
        return
    result = Experiment(settings, tmp_path, words).run()
    assert_ran(tmp_path, result)
    assert result["model"] == model
    assert result["protocol"]["likelihood"] == likelihood
    assert result["protocol"]["conditional"] == conditional
    assert result["timing"]["train_steps"] == (0 if model == "ppca" else 2)
    pictures = {p.stem for p in (tmp_path / "figures").glob("*.png")}
    expected = {"data", "reconstructions"}
    if model != "ae":
        expected |= {"samples", "kl_by_dimension", "aggregate_posterior", "posterior_means"}
        expected |= {"classes"} if conditional else {"manifold"}
    assert pictures == expected


@pytest.mark.parametrize("estimator", [e for e in names("estimator") if not e.startswith("gan_")])
@pytest.mark.parametrize("prior", ["standard", "conditional"])
def test_estimator_and_prior(prior: str, estimator: str, tmp_path: Path) -> None:
    # Whole runs; every estimator with every model is in test_matrix.py.
    model = "ae" if estimator == "reconstruction" else "vlae"
    words = [f"estimator={estimator}", *combination(model, "mlp", "gaussian", True)]
    words += [] if estimator == "reconstruction" else ["estimator.samples=2"]
    words.append(f"model.conditional_prior={str(prior == 'conditional').lower()}")
    assert_ran(tmp_path, Experiment(compose(*words), tmp_path, words).run())


@pytest.mark.parametrize(
    "words", ["data.dequantize=true", "data.dequantize=true data.logit=true", "data.binarize=fixed"]
)
def test_transform(words: str, tmp_path: Path) -> None:
    overrides = [*words.split(), *combination("vlae", "mlp", "gaussian", False)]
    result = Experiment(compose(*overrides), tmp_path, overrides).run()
    assert_ran(tmp_path, result)
    if "dequantize" in words:
        bits = 8 - result["metrics"]["test/log_likelihood"] / (64 * math.log(2))
        assert result["metrics"]["test/bits_per_dimension"] == pytest.approx(bits)


@pytest.mark.parametrize("fit", ["closed_form", "gradient"])
def test_ppca_is_exact(fit: str, tmp_path: Path) -> None:
    # Its posterior is exact, so every importance weight equals log p(x).
    words = ["estimator=elbo_mc", *combination("ppca", "mlp", "gaussian", False), f"model.fit={fit}"]
    metrics = Experiment(compose(*words), tmp_path, words).run()["metrics"]
    exact = metrics["test/log_likelihood_exact"]
    assert metrics["test/log_likelihood"] == pytest.approx(exact, abs=1e-2)
    assert metrics["test/elbo"] == pytest.approx(exact, abs=1e-2)
