"""Bad input of adversarial models: exit code 2, one line that says what is wrong and what to do, nothing written."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import yaml
from support.runs.adversarial_runs import NETWORKS, QUICK, Command, environment, save

from vaerun.config.plugins import builtin_config_dir
from vaerun.config.settings import to_settings
from vaerun.errors import InputError
from vaerun.run.experiment import Experiment

pytestmark = pytest.mark.usefixtures("command_environment")


def choices(group: str) -> dict[str, bool]:
    """Every choice of a group, and whether its file is for adversarial models."""
    adversarial = {}
    for path in sorted((builtin_config_dir() / group).glob("*.yaml")):
        plain = yaml.safe_load(path.read_text())
        adversarial[path.stem] = plain.get("family") == "adversarial" or "label_smoothing" in plain
    return adversarial


MODELS, ESTIMATORS = choices("model"), choices("estimator")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's data."""
    folder = tmp_path_factory.mktemp("files")
    save(folder / "plain.npz", (1, 8, 8))
    save(folder / "small.npz", (1, 7, 9))
    save(folder / "one_class.npz", (1, 8, 8), classes=1)
    save(folder / "one_test.npz", (1, 8, 8), classes=3, test=1)
    for name in ("grey", "grey_test"):
        images = np.random.RandomState(0).randint(0, 256, (60, 1, 8, 8)).astype(np.uint8)
        same = np.full((20, 1, 8, 8), 7, np.uint8)
        np.savez(folder / f"{name}.npz", train_images=same.repeat(3, 0) if name == "grey" else images, test_images=same)
    (folder / "text.pth").write_text("no weights")
    return folder


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    monkeypatch.chdir(folder)
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(here: Command, work: Path) -> Callable[..., str]:
    """The error line for these words."""

    def call(*words: str) -> str:
        before = tree(work)
        code, out, err = here(*words)
        assert (code, out) == (2, ""), err
        assert err.startswith("vaerun: error: ")
        assert err.count("\n") == 1
        assert tree(work) == before
        return err

    return call


TINY = ["trainer.device=cpu", "trainer.max_steps=2", "data.train_images=128"]


ADVERSARIAL = [name for name, adversarial in MODELS.items() if adversarial]
OTHERS = [name for name, adversarial in MODELS.items() if not adversarial]
LOSSES = [name for name, adversarial in ESTIMATORS.items() if adversarial]
BOUNDS = [name for name, adversarial in ESTIMATORS.items() if not adversarial]


def test_both_kinds_are_all_there() -> None:
    assert set(ADVERSARIAL) == {"gan", "dcgan", "cgan", "infogan"}
    assert set(LOSSES) == {"gan_minimax", "gan_nonsaturating"}
    assert min(len(OTHERS), len(BOUNDS)) >= 9


@pytest.mark.parametrize(("estimator", "model"), list(zip(BOUNDS, itertools.cycle(ADVERSARIAL), strict=False)))
def test_a_likelihood_estimator_of_an_adversarial_model(
    estimator: str, model: str, refused: Callable[..., str]
) -> None:
    assert_no_likelihood(
        refused(f"model={model}", f"estimator={estimator}", *NETWORKS["gan_mlp"], *TINY), estimator, model
    )


@pytest.mark.parametrize(("model", "estimator"), list(zip(OTHERS, itertools.cycle(LOSSES), strict=False)))
def test_an_adversarial_estimator_of_a_likelihood_model(
    estimator: str, model: str, refused: Callable[..., str]
) -> None:
    assert_not_adversarial(refused(f"model={model}", f"estimator={estimator}", *TINY), estimator, model)


def assert_no_likelihood(line: str, estimator: str, model: str) -> None:
    assert f"estimator={estimator} needs a likelihood, and model={model} is adversarial" in line
    assert "use estimator=gan_nonsaturating or estimator=gan_minimax" in line


def assert_not_adversarial(line: str, estimator: str, model: str) -> None:
    assert f"estimator={estimator} is for adversarial models, which model={model} is not" in line
    assert line.split("use estimator=")[1].strip() in BOUNDS


def test_every_other_pair(work: Path) -> None:
    """The check behind the command, since the command takes most of the time."""
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        models = {m: to_settings(hydra.compose("config", [f"model={m}", *TINY[:2]])) for m in MODELS}
        estimators = {e: to_settings(hydra.compose("config", [f"estimator={e}"])).estimator for e in ESTIMATORS}
    done = {
        *zip(itertools.cycle(ADVERSARIAL), BOUNDS, strict=False),
        *zip(OTHERS, itertools.cycle(LOSSES), strict=False),
    }
    pairs = {*itertools.product(ADVERSARIAL, BOUNDS), *itertools.product(OTHERS, LOSSES)} - done
    for model, estimator in sorted(pairs):
        settings = dataclasses.replace(models[model], estimator=estimators[estimator])
        with pytest.raises(InputError) as caught:
            Experiment(settings, work / "run", []).run()
        (assert_no_likelihood if model in ADVERSARIAL else assert_not_adversarial)(str(caught.value), estimator, model)
    assert {p.name for p in work.iterdir()} == {"mine.txt"}


NPZ = "data=npz data.validation=10 trainer.batch_size=16 data.path=FILES"
SELECT = "evaluation.selection=classifier_frechet_distance"

# Words after model=gan with small fully connected networks -> parts of the line. FILES/ is the folder of the fixture.
TABLE: dict[str, list[str]] = {
    # networks
    "network=mlp": ["model=gan needs a generator and a discriminator", "network=gan_mlp or network=dcgan"],
    "model=infogan network=conv": ["model=infogan needs a generator and a discriminator"],
    "model=cgan network=draw": ["model=cgan needs a generator and a discriminator"],
    "model.generator=null": ["model=gan needs a generator and a discriminator"],
    "model.generator._target_=vaerun.nets.ConvGenerator": ["model.generator", "missing a required argument: 'width'"],
    "model.discriminator._target_=os.system": ["'os.system' is outside vaerun"],
    # pixels and labels
    "model.likelihood=bernoulli data.binarize=dynamic": ["set model.likelihood=gaussian"],
    "data.dequantize=true data.logit=true": ["generates pixels in [0, 1]: set data.logit=false"],
    "model.fit=closed_form": ["neither model.conditional_prior nor model.fit=closed_form"],
    "model=cgan model.conditional_prior=true": ["neither model.conditional_prior nor"],
    f"model=cgan {NPZ}/plain.npz": ["model=cgan is conditional on the label, and data set npz has no labels"],
    # codes
    "model=infogan model.conditional=true": ["codes, which stand for labels: set model.conditional=false"],
    "model=infogan model.codes.categorical=[] model.codes.continuous=0": ["model.codes defines no code"],
    "model=infogan model.codes.categorical=[1]": ["model.codes", "at least 2", "[1]"],
    "model=infogan model.codes.categorical_weight=-1": ["model.codes.categorical_weight must be a finite number of at"],
    "model=infogan model.codes.continuous_weight=nan": ["model.codes.continuous_weight must be a finite number of at"],
    # losses
    "estimator.label_smoothing=0.6": ["estimator.label_smoothing must be at least 0 and below 0.5, got 0.6"],
    "estimator.discriminator_steps=0": ["estimator.discriminator_steps must be at least 1, got 0"],
    "estimator.discriminator_steps=1.5": ["estimator.discriminator_steps", "1.5"],
    "estimator.r1=-1": ["estimator.r1 must be at least 0"],
    "+estimator.samples=5": ["estimator.samples is for models with a likelihood"],
    "+estimator.kl_weight=0.5": ["unexpected keyword argument 'kl_weight'", "label_smoothing"],
    "+estimator.kl_warmup_epochs=3": ["estimator.kl_warmup_epochs is for models with a likelihood"],
    # optimisers
    "trainer.betas=[0.5,1]": ["trainer.betas must be 2 finite numbers at least 0 and below 1"],
    "trainer.betas=[nan,0.9]": ["trainer.betas must be 2 finite numbers at least 0 and below 1"],
    "trainer.discriminator_betas=[-1,0.5]": ["trainer.discriminator_betas must be 2 finite numbers"],
    "trainer.average=1": ["trainer.average must be below 1, got 1"],
    "trainer.winning_steps=0": ["trainer.winning_steps must be at least 1"],
    "trainer.discriminator_learning_rate=0": ["trainer.discriminator_learning_rate must be above 0"],
    "+trainer.variance_learning_rate=0.1": ["trainer.variance_learning_rate is for models with a likelihood"],
    "trainer.early_stopping=2": ["trainer.early_stopping needs a metric", SELECT],
    # selection
    "evaluation.selection=frechet": ["evaluation.selection=frechet: choose one of null, classifier_frechet_distance"],
    f"{SELECT} data.validation=0": [SELECT, "needs labels of two classes or more and validation images"],
    f"{SELECT} {NPZ}/plain.npz": [SELECT, "npz lacks them"],
    f"{SELECT} {NPZ}/one_class.npz": [SELECT, "npz lacks them"],
    "data.validation=1": ["needs two or more validation images, got 1", "raise data.validation, or set it to 0"],
    "data.validation=0 data.train_images=1 trainer.batch_size=1": ["needs two or more train images, got 1"],
    # evaluation
    "evaluation.gaps=true": ["evaluation.gaps is not a key of this evaluation choice"],
    "evaluation=default evaluation.gaps=true": ["evaluation.gaps=true needs a posterior q(z|x)", "has none"],
    "evaluation=default evaluation.gradient_noise=true": ["evaluation.gradient_noise=true needs a posterior q(z|x)"],
    "model=cgan evaluation.probe=true": ["its discriminator is given the label"],
    f"evaluation.probe=true {NPZ}/plain.npz": ["evaluation.probe=true needs labels, and data set npz has no labels"],
    f"evaluation.probe=true {NPZ}/one_class.npz": ["evaluation.probe=true needs two classes or more"],
    "evaluation.probe=true evaluation.split=train": ["fits to the training split"],
    "evaluation.parzen=true data.validation=0": ["evaluation.parzen chooses a variance on validation images"],
    "evaluation.ais=true data.validation=0": ["choose a variance on validation images", "or model.fixed_variance"],
    "evaluation.ais=true evaluation.observation.variances=[0.1,0.1]": ["two or more finite variances above 0"],
    "evaluation.bdmc=true evaluation.observation.variances=[0.1,inf]": ["finite numbers above 0"],
    "evaluation.observation.variances=[0.1,0]": ["observation.variances must be one or more finite numbers above 0"],
    "evaluation.inception_weights=FILES/none.pth": ["no such file", "none.pth"],
    "evaluation.inception_weights=FILES/text.pth": ["text.pth does not hold Inception's weights"],
    "evaluation.generated.samples=1": ["evaluation.generated.samples must be at least 2"],
    "evaluation.generated.neighbours=50": ["evaluation.generated.neighbours=50 needs more images", "50 are compared"],
    "evaluation.images=1 evaluation.quality=false": ["needs two or more test images, got 1", "raise evaluation.images"],
    f"{NPZ}/one_test.npz": ["needs two or more test images, got 1", "choose another evaluation.split"],
    f"{NPZ}/grey.npz": ["the first 20 test images are all the same"],
    f"{NPZ}/grey.npz evaluation.split=train": ["the first 50 train images are all the same"],
    f"{NPZ}/grey_test.npz": ["the first 20 test images are all the same"],
    # walks
    "evaluation.interpolation=[1,b]": ["unknown set 'b'", "define sets under evaluation.sets"],
    "evaluation.interpolation=[1]": ["evaluation.interpolation needs a list of two or more"],
    "+evaluation.sets.smiling=[1] evaluation.interpolation=[1,smilin]": ["did you mean smiling?"],
    "+evaluation.sets.a=[]": ["evaluation.sets.a must be a list of one or more sample numbers"],
    "evaluation.arithmetic=[1+]": ["evaluation.arithmetic: a set or sample number is missing after the last '+'"],
    "model=cgan evaluation.label=10 evaluation.arithmetic=[1+2]": [
        "evaluation.label=10: the classes are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    ],
}


def placed(words: str, files: Path) -> list[str]:
    return words.replace("FILES", str(files)).split()


@pytest.mark.parametrize("words", TABLE)
def test_refused(words: str, refused: Callable[..., str], files: Path) -> None:
    network = NETWORKS["gan_mlp"] if "network=" not in words else []
    quick = [w for w in QUICK if not ("data=npz" in words and w.startswith("data.train_images"))]
    line = refused("model=gan", *network, *quick, *placed(words, files))
    for part in TABLE[words]:
        assert part in line


DCGAN: dict[str, list[str]] = {
    f"{NPZ}/small.npz": ["images of 7x9 are too small for network=dcgan", "network=gan_mlp"],
    "data=npz data.path=FILES/large.npz data.validation=10 trainer.batch_size=16 estimator.r1=1": [
        "estimator.r1 penalises the gradient of each image",
        "model.discriminator.batch_norm=false",
    ],
    "model.generator.width=0": ["generator.width", "0"],
    "model.discriminator.width=1.5": ["discriminator.width", "1.5"],
}


@pytest.mark.parametrize("words", DCGAN)
def test_refused_of_convolutions(words: str, refused: Callable[..., str], files: Path) -> None:
    save(files / "large.npz", (1, 16, 16))  # two levels: the first is not normalised
    quick = [w for w in QUICK if not ("data=npz" in words and w.startswith("data.train_images"))]
    line = refused("model=dcgan", *NETWORKS["dcgan"], *quick, *placed(words, files))
    for part in DCGAN[words]:
        assert part in line


# Words -> parts of the line; of the default model or another one with a likelihood.
LIKELIHOOD: dict[str, list[str]] = {
    "model=vae network=gan_mlp": ["model=vae needs an encoder and a decoder", "network=mlp or network=conv"],
    "model=vae network=dcgan": ["model=vae needs an encoder and a decoder"],
    "model=vae trainer=adversarial": ["trainer.average is for adversarial models", "use trainer=default"],
    "model=vae +trainer.discriminator_learning_rate=0.1": ["trainer.discriminator_learning_rate is for adversarial"],
    "model=vae +trainer.discriminator_betas=[0.5,0.9]": ["trainer.discriminator_betas is for adversarial models"],
    "model=vae +estimator.r1=1": ["estimator.r1 is for adversarial models"],
    "model=vae +estimator.discriminator_steps=3": ["estimator.discriminator_steps is for adversarial models"],
    "model=vae +estimator.label_smoothing=0.1": ["unexpected keyword argument 'label_smoothing'"],
    "model=vae +model.codes.categorical=[10]": ["model.codes is for adversarial models, which model=vae is not"],
    "model=vae evaluation=adversarial evaluation.parzen=true": ["evaluation.parzen is for adversarial models"],
    f"model=vae evaluation=adversarial {SELECT}": ["evaluation.selection is for adversarial models"],
    "model=vae evaluation.quality=true evaluation.images=1": ["needs two or more test images, got 1"],
    "model=vae evaluation.quality=true evaluation.images=4": ["evaluation.generated.neighbours=5 needs more images"],
    "model=ae evaluation.quality=true": ["evaluation.quality needs a likelihood", "model=ae"],
    "model=ae evaluation.interpolation=[1,2]": ["evaluation.interpolation needs a likelihood"],
    "model=ae evaluation.arithmetic=[1+2]": ["evaluation.arithmetic needs a likelihood"],
    "evaluation.interpolation=[1,b]": ["unknown set 'b'"],
    "evaluation.noise.estimators=[gan_minimax]": ["gan_minimax: it is for adversarial models"],
}


@pytest.mark.parametrize("words", LIKELIHOOD)
def test_refused_of_models_with_a_likelihood(words: str, refused: Callable[..., str]) -> None:
    line = refused(*TINY, *words.split())
    for part in LIKELIHOOD[words]:
        assert part in line


def test_what_is_allowed_runs(here: Command, tmp_path: Path, files: Path) -> None:
    """Valid neighbours of the rejected values, as many as fit in one run."""
    words = f"{NPZ}/one_class.npz estimator.label_smoothing=0.49 estimator.r1=0 trainer.average=0 trainer.max_steps=2"
    words += " trainer.betas=[0,0.999] data.validation=2 evaluation.images=2 evaluation.generated.neighbours=2"
    words += " evaluation.interpolation=[0,0] model.codes.continuous_weight=0 trainer.winning_steps=1"
    quick = [w for w in QUICK if not w.startswith("data.train_images")]
    code, _, err = here(
        "model=infogan", *NETWORKS["gan_mlp"], *quick, *placed(words, files), f"output_dir={tmp_path}/run"
    )
    assert code == 0, err
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["progress"]["step"] == 2
