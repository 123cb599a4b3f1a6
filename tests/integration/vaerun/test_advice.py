"""Refusals that name a fix, each followed by the fix: what is then run is accepted, or refused for another reason."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from vaerun.cli.override_errors import explain
from vaerun.config.overrides import spell_out_switches
from vaerun.config.plugins import builtin_config_dir
from vaerun.config.settings import to_settings
from vaerun.errors import InputError
from vaerun.sweep.plan import JobChecker

Row = tuple[str, str, list[str]]
IMAGES = np.random.RandomState(0).randint(0, 256, (60, 1, 8, 8)).astype(np.uint8)
LABELS = np.arange(60) % 3
GAN, DCGAN = "model=gan evaluation.quality=false", "model=dcgan evaluation.quality=false"
DEEP = f"{DCGAN} model.discriminator.dense=[8]"  # with a layer that is normalised
NPZ = "data=npz data.path=FILES"
SELECT = "evaluation.selection=classifier_frechet_distance"

# What is refused, what the line must say, and the commands that follow from it.
TRAINING: list[Row] = [
    ("trainer.device=gpu", "use auto, cpu, cuda, cuda:N or mps", ["trainer.device=cpu", "trainer.device=auto"]),
    ("trainer.device=meta", "use auto, cpu, cuda, cuda:N or mps", ["trainer.device=cpu"]),
    ("trainer.compile=graph", "use trainer.compile=auto", ["trainer.compile=auto"]),
    ("trainer.precision=tf32", "use trainer.precision=float32", ["trainer.precision=float32"]),
    ("trainer.processes=2 trainer.replicas=2", "set one of them to 1", ["trainer.processes=2", "trainer.replicas=2"]),
    ("trainer.batch_size=5000", "set it to at most 1298", ["trainer.batch_size=1298"]),
    ("trainer.betas=[1,1]", "2 finite numbers at least 0 and below 1", ["trainer.betas=[0.9,0.99]"]),
    ("trainer.schedule=cosin", "Did you mean cosine?", ["trainer.schedule=cosine"]),
    (f"{DEEP} trainer.batch_size=1297", "choose another batch size", [f"{DEEP} trainer.batch_size=128"]),
    ("trainer=adversarial", "set trainer.average=null, or use trainer=default",
     ["trainer=adversarial trainer.average=null", "trainer=default"]),
    (f"{DCGAN} trainer.processes=2", "or switch it off (batch_norm=false in model.generator and model",
     [DCGAN, f"{DCGAN} trainer.processes=2 model.generator.batch_norm=false model.discriminator.batch_norm=false"]),
    ("estimator=score_function estimator.control_variate=mean trainer.processes=2",
     "set trainer.processes=1, or choose another value",
     ["estimator=score_function estimator.control_variate=mean",
      "estimator=score_function estimator.control_variate=leave_one_out trainer.processes=2"]),
    ("trainer.resume=nowhere", "use auto, never or an existing path", ["trainer.resume=auto", "trainer.resume=never"]),
]  # fmt: skip
DATA: list[Row] = [
    (f"model=cvae {NPZ}/plain.npz", "add labels, or set model.conditional=false",
     [f"model=cvae {NPZ}/labelled.npz", f"model=cvae {NPZ}/plain.npz model.conditional=false"]),
    (f"model=cgan evaluation.quality=false {NPZ}/plain.npz", "add labels, or set model.conditional=false",
     [f"model=cgan evaluation.quality=false {NPZ}/plain.npz model.conditional=false"]),
    (f"model=cvae {NPZ}/half_labelled.npz", "test_labels",
     [f"model=cvae {NPZ}/labelled.npz"]),
    (f"evaluation.probe=true {NPZ}/plain.npz", "has no labels: omit it",
     [f"evaluation.probe=true {NPZ}/labelled.npz", f"{NPZ}/plain.npz"]),
    (f"evaluation.probe=true {NPZ}/half_labelled.npz", "test_labels",
     [f"evaluation.probe=true {NPZ}/labelled.npz"]),
    ("data=npz", "data.path must be given: data.path=VALUE", [f"{NPZ}/plain.npz"]),
    ("data.path=FILES/plain.npz", "data=npz", [f"{NPZ}/plain.npz"]),
    (f"model=dcgan evaluation.quality=false {NPZ}/tiny.npz", "use network=gan_mlp, or larger images",
     [f"model=dcgan evaluation.quality=false network=gan_mlp {NPZ}/tiny.npz", f"{DCGAN} {NPZ}/plain.npz"]),
    ("model.likelihood=bernoulli", "set data.binarize=dynamic (or fixed), or model.likelihood=gaussian",
     ["model.likelihood=bernoulli data.binarize=dynamic", "model.likelihood=bernoulli data.binarize=fixed",
      "model.likelihood=gaussian"]),
]  # fmt: skip
MODELS: list[Row] = [
    ("network=gan_mlp", "use network=mlp or network=conv", ["network=mlp", "network=conv"]),
    (f"{GAN} network=mlp", "use network=gan_mlp or network=dcgan", [f"{GAN} network=gan_mlp", f"{GAN} network=dcgan"]),
    ("network=draw model.latent_dim=20", "use model=draw", ["model=draw network=draw model.latent_dim=20"]),
    ("model=draw model.latent_dim=101", "must be a multiple of model.decoder.steps=10",
     ["model=draw model.latent_dim=90"]),
    ("model=draw model.inference.steps=5", "set only model.decoder.steps", ["model=draw model.decoder.steps=5"]),
    ("model=draw model.encoder.decoder_hidden=128", "set only model.decoder.hidden",
     ["model=draw model.decoder.hidden=128"]),
    ("network=conv model.encoder.channels=[8,8,8,8]", "use fewer", ["network=conv model.encoder.channels=[8,8]"]),
    ("model.encoder.activation=swish", "choose one of", ["model.encoder.activation=relu"]),
    ("model.encoder.hidden=[0]", "such as [500,500]", ["model.encoder.hidden=[500,500]"]),
    ("model.encoder=null", "model.encoder must be set", ["model=vae"]),
    ("model=ae model.encoder=null", "model.encoder must be set", ["model=ae"]),
    ("model=vlae model.inference.damping=half", "choose one of", ["model=vlae model.inference.damping=none"]),
    ("model=vlae model.inference.steps=-1", "an integer of at least 0", ["model=vlae model.inference.steps=0"]),
    ("model=vlae +model.inference.spam=1", "its options: steps, damping", ["model=vlae"]),
    ("model=sa_vae model.inference.step_size=0", "a number above 0", ["model=sa_vae model.inference.step_size=0.1"]),
    ("model=vae_iaf model.inference.hidden=[4]", "make it wider", ["model=vae_iaf model.inference.hidden=[16]"]),
    ("model=vae_iaf model.inference.context=0", "at least 1 or null", ["model=vae_iaf model.inference.context=null"]),
    (f"{DEEP} model.discriminator.spectral_norm=true", "set model.discriminator.batch_norm=false",
     [f"{DEEP} model.discriminator.spectral_norm=true model.discriminator.batch_norm=false"]),
    (f"{DEEP} estimator.r1=1", "set model.discriminator.batch_norm=false",
     [f"{DEEP} estimator.r1=1 model.discriminator.batch_norm=false"]),
    (f"{GAN} model.likelihood=bernoulli", "set model.likelihood=gaussian", [f"{GAN} model.likelihood=gaussian"]),
    (f"{GAN} model.conditional_prior=true", "omit", [GAN]),
    (f"{GAN} data.dequantize=true data.logit=true", "set data.logit=false", [f"{GAN} data.dequantize=true"]),
    ("data.logit=true", "data.dequantize=true", ["data.logit=true data.dequantize=true"]),
    ("model=infogan evaluation.quality=false model.conditional=true", "set model.conditional=false",
     ["model=infogan evaluation.quality=false"]),
    ("model=infogan evaluation.quality=false model.codes.categorical=[] model.codes.continuous=0",
     "set model.codes.categorical=[10] or model.codes.continuous=1",
     ["model=infogan evaluation.quality=false model.codes.categorical=[10] model.codes.continuous=0",
      "model=infogan evaluation.quality=false model.codes.categorical=[] model.codes.continuous=1"]),
    ("model=infogan evaluation.quality=false model.codes.continuous_variance=0", "or null to learn it",
     ["model=infogan evaluation.quality=false model.codes.continuous_variance=null"]),
    ("model.conditional_prior=true", "needs model.conditional=true: set it, or omit both",
     ["model.conditional_prior=true model.conditional=true", "model=vae"]),
    ("model=ppca model.decoder.hidden=[8]", "set network=mlp model.decoder.hidden=[] model.likelihood=gaussian "
     "model.conditional=false, or use model.fit=gradient",
     ["model=ppca network=mlp model.decoder.hidden=[] model.likelihood=gaussian model.conditional=false",
      "model=ppca model.decoder.hidden=[8] model.fit=gradient"]),
    ("model=ppca model.latent_dim=64", "must be below the 64 pixels", ["model=ppca model.latent_dim=63"]),
]  # fmt: skip
ESTIMATORS: list[Row] = [
    ("model=vlae estimator.free_bits=1", "set estimator.free_bits=0, or choose model=vae, cvae or sa_vae",
     ["model=vlae estimator.free_bits=0", *(f"model={m} estimator.free_bits=1" for m in ("vae", "cvae", "sa_vae"))]),
    ("model=vae_iaf estimator=elbo", "use estimator=elbo_mc", ["model=vae_iaf estimator=elbo_mc"]),
    ("estimator=renyi estimator.alpha=1", "use estimator=elbo_mc", ["estimator=elbo_mc"]),
    ("estimator=reconstruction", "use estimator=elbo", ["estimator=elbo"]),
    ("model=ae estimator=elbo", "use estimator=reconstruction, or a model with a posterior such as model=vae",
     ["model=ae estimator=reconstruction", "model=vae estimator=elbo"]),
    ("estimator=score_function estimator.samples=1",
     "set estimator.samples to at least 2, or estimator.control_variate=mean",
     ["estimator=score_function estimator.samples=2",
      "estimator=score_function estimator.samples=1 estimator.control_variate=mean"]),
    ("estimator=score_function estimator.control_variate=best", "choose one of",
     ["estimator=score_function estimator.control_variate=none"]),
    (f"{GAN} estimator=elbo", "use estimator=gan_nonsaturating or estimator=gan_minimax",
     [f"{GAN} estimator=gan_nonsaturating", f"{GAN} estimator=gan_minimax"]),
    ("estimator=gan_minimax", "use estimator=elbo_mc", ["estimator=elbo_mc"]),
    ("model=ae estimator=gan_minimax", "use estimator=reconstruction", ["model=ae estimator=reconstruction"]),
    ("+estimator.discriminator_steps=2", "omit it", [""]),
    ("estimator=iwae +estimator.kl_warmup_epochs=1", "omit it", ["estimator=iwae"]),
    (f"{GAN} +estimator.samples=5", "omit it", [GAN]),
    (f"{GAN} estimator.label_smoothing=0.6", "below 0.5", [f"{GAN} estimator.label_smoothing=0.4"]),
]  # fmt: skip
EVALUATION: list[Row] = [
    ("model=ae evaluation.ais=true", "omit it", ["model=ae"]),
    ("data.validation=0 evaluation.split=validation", "set data.validation=0.1, or evaluation.split=test",
     ["data.validation=0.1 evaluation.split=validation", "data.validation=0 evaluation.split=test"]),
    ("evaluation.probe=true evaluation.split=train", "evaluate test or validation",
     ["evaluation.probe=true evaluation.split=test", "evaluation.probe=true evaluation.split=validation"]),
    ("model=cvae evaluation.probe=true", "omit it", ["model=cvae"]),
    ("evaluation.gradient_noise=true evaluation.noise.estimators=[]", "such as [elbo_mc,score_function]",
     ["evaluation.gradient_noise=true evaluation.noise.estimators=[elbo_mc,score_function]"]),
    ("evaluation.gradient_noise=true evaluation.noise.estimators=[elbow]", "Did you mean elbo?",
     ["evaluation.gradient_noise=true evaluation.noise.estimators=[elbo]"]),
    ("evaluation.gradient_noise=true evaluation.noise.estimators=[elbo/3]", "has no option to set",
     ["evaluation.gradient_noise=true evaluation.noise.estimators=[elbo]"]),
    ("evaluation.gradient_noise=true evaluation.noise.estimators=[renyi/]", "needs a value of alpha after the slash",
     ["evaluation.gradient_noise=true evaluation.noise.estimators=[renyi/0.5]"]),
    ("evaluation.quality=true evaluation.images=5", "set it to at most 4, or raise evaluation.images",
     ["evaluation.quality=true evaluation.images=5 evaluation.generated.neighbours=4",
      "evaluation.quality=true evaluation.images=6"]),
    ("evaluation.quality=true evaluation.generated.samples=5", "raise evaluation.generated.samples",
     ["evaluation.quality=true evaluation.generated.samples=6"]),
    ("evaluation.quality=true evaluation.generated.neighbours=400", "set it to at most 358",
     ["evaluation.quality=true evaluation.generated.neighbours=358"]),
    ("model=cvae evaluation.label=10 evaluation.interpolation=[1,2]", "the classes are 0, 1, 2",
     ["model=cvae evaluation.label=9 evaluation.interpolation=[1,2]"]),
    ("evaluation.interpolation=[1]", "a list of two or more", ["evaluation.interpolation=[1,2]"]),
    ("evaluation.arithmetic=['1 2']", "+ or - is missing before '2'", ["evaluation.arithmetic=['1 + 2']"]),
    ("evaluation.amis=3", "write evaluation.amis.KEY=VALUE, =true or =false",
     ["evaluation.amis=true", "evaluation.amis=false", "evaluation.amis.samples=3"]),
    ("evaluation.amis=false evaluation.amis.samples=5", "omit one",
     ["evaluation.amis=false", "evaluation.amis.samples=5"]),
    (f"{GAN} trainer.early_stopping=2", f"set {SELECT}, or trainer.early_stopping=null",
     [f"{GAN} trainer.early_stopping=2 {SELECT}", f"{GAN} trainer.early_stopping=null"]),
    (f"{GAN} {SELECT} data.validation=0", "omit it", [f"{GAN} data.validation=0"]),
    (f"{GAN} evaluation.ais=true data.validation=0", "set data.validation or model.fixed_variance",
     [f"{GAN} evaluation.ais=true data.validation=0.1",
      f"{GAN} evaluation.ais=true data.validation=0 model.fixed_variance=0.1"]),
    (f"{GAN} evaluation.parzen=true data.validation=0", "set data.validation", [f"{GAN} evaluation.parzen=true"]),
    (f"{GAN} evaluation.ais=true evaluation.observation.variances=[0.1]", "add some, or set model.fixed_variance",
     [f"{GAN} evaluation.ais=true evaluation.observation.variances=[0.1,0.2]",
      f"{GAN} evaluation.ais=true evaluation.observation.variances=[0.1] model.fixed_variance=0.1"]),
    (f"{GAN} evaluation=default evaluation.gaps=true", "omit it", [f"{GAN} evaluation=default"]),
    (f"{GAN} data.validation=1", "raise data.validation, or set it to 0",
     [f"{GAN} data.validation=2", f"{GAN} data.validation=0"]),
    (f"{GAN} evaluation.images=1", "raise evaluation.images", [f"{GAN} evaluation.images=2"]),
]  # fmt: skip
NAMES: list[Row] = [
    ("lr=0.1", "Did you mean trainer.learning_rate?", ["trainer.learning_rate=0.1"]),
    ("trainer.lr=0.1", "Did you mean trainer.learning_rate?", ["trainer.learning_rate=0.1"]),
    ("++model.lr=0.1", "Did you mean trainer.learning_rate?", ["trainer.learning_rate=0.1"]),
    ("trainer.gpus=1", "trainer.device=auto takes a GPU if there is one", ["trainer.device=auto"]),
    ("trainer.num_workers=2", "leave it out", [""]),
    ("batch=16", "Did you mean trainer.batch_size?", ["trainer.batch_size=16"]),
    ("K=50", "Did you mean evaluation.samples or estimator.samples?",
     ["evaluation.samples=50", "estimator.samples=50"]),
    ("dataset=digits", "Did you mean data?", ["data=digits"]),
    ("patience=2", "Did you mean trainer.early_stopping?", ["trainer.early_stopping=2"]),
    ("beta=4", "Did you mean estimator.kl_weight?", ["estimator.kl_weight=4"]),
    ("optimizer=adam", "leave it out", [""]),
    ("fp16=true", "trainer.precision=bf16", ["trainer.precision=bf16"]),
    ("model=vlea", "Did you mean vlae?", ["model=vlae"]),
    ("sweep=3", "write sweep.KEY=VALUE", ["sweep.jobs=3"]),
    ("~trainer.epochs", "trainer.epochs must be given: trainer.epochs=VALUE", ["trainer.epochs=2"]),
]  # fmt: skip
CHECKED = [*TRAINING, *DATA, *MODELS, *ESTIMATORS, *EVALUATION, *NAMES]

# The same for what only the command itself refuses.
COMMANDS: list[Row] = [
    ("trainer.epochs=1,2", "add -m", ["-m trainer.epochs=1,2"]),
    ("model=vae,cvae", "add -m", ["-m model=vae,cvae"]),
    ("trainer.betas=0.5,0.9", "a list is written [0.5,0.9]", ["trainer.betas=[0.5,0.9]"]),
    ("trainer.epochs", "such as trainer.epochs=VALUE", ["trainer.epochs=2"]),
    ("--epochs 3", "without dashes. Did you mean trainer.epochs?", ["trainer.epochs=3"]),
    ("--seed=3", "without dashes, such as seed=VALUE", ["seed=3"]),
    ("lr 0.1", "write KEY=VALUE. Did you mean trainer.learning_rate?", ["trainer.learning_rate=0.1"]),
    ("output_dir=my run", "'key=\"value\"'", ["'output_dir=\"my run\"'"]),
    ("output_dir=a=b", "'key=\"value\"'", ["'output_dir=\"a=b\"'"]),
    ("-m seed=range(0)", "give it some", ["-m seed=range(1)"]),
    ("-m trainer.replicas=2", "such as seed=range(5)", ["-m seed=range(2)"]),
    ("-m output_dir=a,b", "give one output_dir", ["-m output_dir=a"]),
    ("-m --cfg job seed=0", "leave out -m, or use --check -m", ["--cfg job seed=0", "-m seed=0"]),
    ("-m hydra/launcher=joblib seed=0,1", "sweep.jobs=2", ["-m sweep.jobs=2 seed=0,1"]),
    ("-m lr=0.1,0.2", "Did you mean trainer.learning_rate?", ["-m trainer.learning_rate=0.1,0.2"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's data."""
    folder = tmp_path_factory.mktemp("files")
    labels = {"train_labels": LABELS, "test_labels": LABELS}
    np.savez(folder / "plain.npz", train_images=IMAGES, test_images=IMAGES)
    np.savez(folder / "labelled.npz", train_images=IMAGES, test_images=IMAGES, **labels)
    np.savez(folder / "half_labelled.npz", train_images=IMAGES, test_images=IMAGES, train_labels=LABELS)
    np.savez(folder / "tiny.npz", train_images=IMAGES[..., :4, :4], test_images=IMAGES[..., :4, :4])
    return folder


@pytest.fixture(scope="module")
def refusal(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The line that refuses these words on a machine without a GPU, or "" if they would run; nothing is trained."""
    checkers: dict[str, JobChecker] = {}
    folder = tmp_path_factory.mktemp("runs") / "run"
    environment = pytest.MonkeyPatch()
    environment.setenv("VAERUN_CACHE", str(tmp_path_factory.mktemp("cache")))
    environment.delenv("VAERUN_DATA", raising=False)
    environment.setattr(torch.cuda, "is_available", lambda: False)

    def refuse(text: str) -> str:
        words = ["model=vae", "trainer.batch_size=16", *shlex.split(text.replace("FILES", str(files)))]
        try:
            words = spell_out_switches(words)
            GlobalHydra.instance().clear()
            with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
                config = hydra.compose("config", words)
            settings = to_settings(config)
            checker = checkers.setdefault(str(settings.data), JobChecker())
            checker.check(settings, folder, words, None, 0)
        except HydraException as error:
            return explain(error, words)
        except InputError as error:
            return str(error)
        return ""

    yield refuse
    environment.undo()


@pytest.mark.parametrize("row", CHECKED, ids=lambda row: row[0])
def test_the_advice_helps(row: Row, refusal: Callable[[str], str], single_precision: None) -> None:
    refused, advice, fixes = row
    line = refusal(refused)
    assert advice in line
    assert len(line.splitlines()) == 1
    for fix in fixes:
        assert refusal(fix) == "", fix


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row[0])
def test_the_advice_of_the_command_helps(
    row: Row, here: Callable[..., tuple[int, str, str]], command_environment: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    refused, advice, fixes = row

    def check(words: list[str]) -> tuple[int, str, str]:
        return here(*words, *([] if "--cfg" in words else ["--check"]), "model=vae")

    code, _, err = check(refused.split(" "))
    assert code == 2
    assert advice in err
    for fix in fixes:
        code, _, err = check(shlex.split(fix))
        assert code == 0, err
    assert os.listdir(tmp_path) == []  # nothing was run
