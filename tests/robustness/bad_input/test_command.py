"""Bad input: exit code 2, one line that says what is wrong, where, and what to do; nothing created or changed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from support.models.precision import set_precision
from support.runs.commands import FAST_AMIS

from vaerun.config import plugins

QUICK = """trainer.max_steps=2 trainer.device=cpu evaluation.samples=20 evaluation.images=20 evaluation.pictures=0"""
QUICK += " " + " ".join(FAST_AMIS)
TINY = "model=vae model.encoder.hidden=[4] model.decoder.hidden=[4] model.latent_dim=2 data.train_images=128"
IMAGES = np.random.RandomState(0).randint(0, 256, (60, 1, 8, 8)).astype(np.uint8)
LABELS = np.arange(60) % 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's data, good and bad, and a finished run."""
    folder = tmp_path_factory.mktemp("files")
    nan = IMAGES.astype(np.float32)
    nan[3, 0, 1, 1] = np.nan
    bad: dict[str, dict[str, Any]] = {
        "plain": {"train_images": IMAGES},
        "small": {"train_images": IMAGES[:, :, :3, :3]},
        "other_name": {"pictures": IMAGES, "kinds": LABELS},
        "two_names": {"images": IMAGES, "data": IMAGES},
        "signed": {"train_images": IMAGES / 127.5 - 1},
        "two_scales": {"train_images": IMAGES // 128, "test_images": IMAGES},
        "nan": {"train_images": nan},
        "rank": {"train_images": IMAGES[0, 0]},
        "channels_last": {"train_images": np.repeat(IMAGES, 3, 1).transpose(0, 2, 3, 1)[:, :7]},
        "images_last": {"train_images": np.moveaxis(IMAGES[:, 0], 0, 2)},
        "no_images": {"train_images": IMAGES[:0]},
        "one_image": {"train_images": IMAGES[:1]},
        "grey_test": {"train_images": IMAGES // 128 * 255, "test_images": IMAGES},
        "unseen": {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS + 1},
        "half_labelled": {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES},
        "several_classes": {"train_images": IMAGES, "train_labels": np.ones((60, 3))},
        "few_labels": {"train_images": IMAGES, "train_labels": LABELS[:59]},
        "float_labels": {"train_images": IMAGES, "train_labels": LABELS / 2},
        "test_shape": {"train_images": IMAGES, "test_images": IMAGES[:, :, :4]},
        "test_labels_alone": {"train_images": IMAGES, "test_labels": LABELS},
        "objects": {"train_images": IMAGES.astype(object)},
    }
    for name, arrays in bad.items():
        np.savez(folder / f"{name}.npz", **arrays)
    content = (folder / "plain.npz").read_bytes()
    (folder / "cut.npz").write_bytes(content[: len(content) // 2])
    (folder / "text.npz").write_text("no archive")
    (folder / "text.pt").write_text("no checkpoint")
    return folder


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A separate working folder; the cache is outside it."""
    threads = torch.get_num_threads()
    set_precision(torch.float32)
    torch.set_num_threads(1)
    monkeypatch.setenv("VAERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: put back after the test
    monkeypatch.delenv("VAERUN_DATA", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    monkeypatch.chdir(folder)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def vaerun(here: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process, with the quick settings before the words."""
    return lambda *words: here(*shlex.split(QUICK), *words)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def assert_refused(vaerun: Callable[..., tuple[int, str, str]], work: Path, words: list[str], *parts: str) -> None:
    before = tree(work)
    code, out, err = vaerun(*words)
    assert code == 2, err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("vaerun: error: ")
    assert out == ""
    assert not re.search(r"got -?\d+\.0$", lines[0])
    for part in parts:
        assert part in lines[0]
    assert tree(work) == before


# Arguments -> parts of the line. FILES/ is the folder of the fixture.
TABLE: dict[str, list[str]] = {
    # names
    "trainer.epoch=3": ["unknown key 'trainer.epoch'", "Did you mean trainer.epochs?"],
    "trainer.latent_dim=3": ["unknown key 'trainer.latent_dim'", "Did you mean model.latent_dim?"],
    "modle=vae": ["unknown key 'modle'", "Did you mean model?"],
    "nosuchgroup=1": ["unknown key 'nosuchgroup'"],
    "model=vlea": ["unknown choice model=vlea", "Did you mean vlae?", "Choices: ae, cgan, cvae"],
    "model=narrow": ["unknown choice model=narrow", "vlae; those of other packages need VAERUN_PLUGINS=PACKAGE"],
    "data=cifar": ["unknown choice data=cifar", "Did you mean cifar10?"],
    "experiment=cifar_quick": ["experiment=cifar_quick", "Did you mean cifar10_quick?"],
    "+trainer.epoch=1": ["unknown key 'trainer.epoch'", "Did you mean trainer.epochs?"],
    "+model.inference.spam=1": ["model.inference", "'spam'", "steps, damping"],
    "model.inference.spam=1": ["unknown key 'model.inference.spam'"],
    "data.path=x.npz": ["data.path is not a key of this data choice", "data=file, data=folder, data=hf, data=npz"],
    "--frobnicate": ["unknown flag '--frobnicate'"],
    "--multirn": ["unknown flag '--multirn'", "Did you mean --multirun?"],
    "trainer.epochs=[1": ["cannot read the override 'trainer.epochs=[1'"],
    "trainer.epochs": ["'trainer.epochs' is not an override: write KEY=VALUE, such as trainer.epochs=VALUE"],
    "trainer.epochs 5": ["'trainer.epochs' is not an override: write KEY=VALUE, such as trainer.epochs=5"],
    "foo": ["'foo' is not an override: write KEY=VALUE, such as model=vlae"],
    "vlae": ["'vlae' is not an override: write KEY=VALUE, such as model=vlae"],
    "draw": ["'draw' is not an override: write KEY=VALUE, such as model=draw or network=draw"],
    "-m seed=1 cifar10": ["'cifar10' is not an override: write KEY=VALUE, such as data=cifar10"],
    "model sa_vae": ["'model' is not an override: write KEY=VALUE, such as model=sa_vae"],
    "data.path=my file.npz": ["'file.npz' is not an override", "quote values with spaces"],
    "=3": ["'=3'"],
    "trainer.epochs=1,2": ["'trainer.epochs=1,2': several values make a sweep: add -m (or quote the value"],
    "trainer.betas=0.5,0.9": ["a list is written [0.5,0.9])"],
    "model=vae,vlae": ["'model=vae,vlae': several values make a sweep: add -m"],
    "seed=range(3)": ["'seed=range(3)': several values make a sweep: add -m"],
    "~trainer.epochs": ["trainer.epochs must be given"],
    # types and ranges
    "trainer.epochs=many": ["trainer.epochs", "'many'"],
    "trainer.epochs=1.5": ["trainer.epochs", "1.5"],
    "trainer.epochs=null": ["trainer.epochs"],
    "trainer.epochs=-1": ["trainer.epochs must be at least 1"],
    "trainer.batch_size=0": ["trainer.batch_size must be at least 1"],
    "trainer.learning_rate=0": ["trainer.learning_rate must be above 0"],
    "trainer.learning_rate=nan": ["trainer.learning_rate must be a finite number"],
    "trainer.clip_norm=0": ["trainer.clip_norm must be above 0"],
    "trainer.early_stopping=0": ["trainer.early_stopping must be at least 1"],
    "trainer.schedule=cosin": ["trainer.schedule=cosin", "Did you mean cosine?"],
    "data.validation=-1": ["data.validation must be at least 0, got -1"],
    "seed=-1": ["seed must be at least 0"],
    "model.latent_dim=0": ["model.latent_dim must be at least 1"],
    "model.likelihood=bernouli": ["model.likelihood=bernouli", "Did you mean bernoulli?"],
    "model.inference.steps=-1": ["model.inference.steps must be an integer of at least 0, got -1"],
    "model.inference.steps=1.5": ["model.inference.steps must be an integer of at least 0, got 1.5"],
    "model.inference.damping=half": ["model.inference.damping", "paper, none"],
    "model=sa_vae model.inference.step_size=0": ["model.inference.step_size must be a number above 0"],
    "model=sa_vae model.inference.step_size=big": ["model.inference.step_size", "big"],
    "model.encoder.hidden=[0]": ["encoder.hidden", "[0]"],
    "model.encoder.hidden=8": ["encoder.hidden", "8"],
    "model.decoder.activation=rlu": ["unknown activation 'rlu'", "relu"],
    "evaluation.arithmetic=[[1]]": ["evaluation.arithmetic must be a list of strings, such as [a,b], got [[1]]"],
    "'evaluation.arithmetic=[{a: 1}]'": ["evaluation.arithmetic must be a list of strings"],
    "evaluation.noise.estimators=[[elbo]]": ["evaluation.noise.estimators must be a list of strings"],
    "trainer.betas=[[0.5],0.9]": ["trainer.betas must be a list of numbers"],
    "estimator.kl_warmup_epochs=1e308": ["estimator.kl_warmup_epochs must be between -3e+38 and 3e+38, got 1e+308"],
    "estimator.kl_warmup_epochs=1e10": ["estimator.kl_warmup_epochs must be at most 1000000000, got 10000000000"],
    "estimator.free_bits=1e308": ["estimator.free_bits must be between"],
    "trainer.learning_rate=1e39": ["trainer.learning_rate must be between"],
    "model=sa_vae model.inference.step_size=1e40": ["model.inference.step_size must be between"],
    "trainer.epochs=10000000000": ["trainer.epochs must be at most 1000000000"],
    "trainer.replicas=1000000000000": ["trainer.replicas must be at most 1000,"],
    "model.encoder.activation=[relu]": ["unknown activation '['relu']'", "leaky_relu"],
    "'model.decoder.activation={a: 1}'": ["unknown activation"],
    "model.encoder.hidden=[9223372036854775807]": ["encoder.hidden must list widths of at most 1000000000, got"],
    "model=draw model.encoder.hidden=1000000000000": ["model.encoder.hidden must be at most 1000000000, got"],
    "model=draw model.decoder.write_size=1000000000000": ["model.decoder.write_size must be at most 1000000000, got"],
    "estimator.samples=1000000000000": ["estimator.samples must be at most 1000000000, got 1000000000000"],
    "evaluation.annealing=1": ["evaluation.annealing is a group of keys: write evaluation.annealing.KEY=VALUE"],
    "model.encoder=[1]": ["cannot set 'model.encoder=[1]'", "vaerun --cfg job shows which"],
    "estimator.samples=0": ["estimator.samples must be at least 1"],
    "evaluation.samples=0": ["evaluation.samples must be at least 1"],
    # data
    "trainer.batch_size=5000": ["trainer.batch_size=5000 is larger than the training split (1298 images)"],
    "data.validation=1438": ["data.validation must be between 0 and 1437"],
    "data.train_images=9999": ["data.train_images must be between 1 and 1298"],
    "data.binarize=dynamc": ["data.binarize=dynamc", "Did you mean dynamic?"],
    "data.dequantize=true data.binarize=dynamic": ["data.dequantize=true", "set data.binarize=none"],
    "data.dequantize=true model.likelihood=bernoulli": ["model.likelihood=bernoulli needs binary pixels"],
    "data.logit=true": ["data.logit=true needs data.dequantize=true"],
    "model.likelihood=bernoulli": ["model.likelihood=bernoulli needs binary pixels", "data.binarize=dynamic"],
    "data=npz": ["data.path must be given: data.path="],
    "data=folder": ["data.path must be given: data.path="],
    "data=npz data.path=FILES/none.npz": ["none.npz: no such file"],
    "data=npz data.path=FILES": ["a folder, without files of MNIST's format"],
    "data=npz data.path=FILES/other_name.npz": ["other_name.npz: contains pictures, kinds; required: train_images"],
    "data=npz data.path=FILES/two_names.npz": ["images and data could each be train_images"],
    "data=npz data.path=FILES/signed.npz": ["the pixels are in -1..1; expected 0..255", "store (images + 1) / 2"],
    "data=npz data.path=FILES/two_scales.npz": ["must have one scale: store train_images * 255"],
    "data=npz data.path=FILES/nan.npz": ["train_images: image 3 has NaN"],
    "data=npz data.path=FILES/rank.npz": ["train_images: shape is [8, 8], which is vectors; expected [N, C, H, W]"],
    "data=npz data.path=FILES/channels_last.npz": ["if it is [N, H, W, C], store images.transpose(0, 3, 1, 2)"],
    "data=npz data.path=FILES/images_last.npz": ["if they are [H, W, N], store np.moveaxis(images, 2, 0)"],
    "data=npz data.path=FILES/no_images.npz": ["which is empty"],
    "data=npz data.path=FILES/one_image.npz": ["1 image(s)"],
    "data=npz data.path=FILES/few_labels.npz": ["train_labels: shape is [59]; expected one label per image", "N = 60"],
    "data=npz data.path=FILES/float_labels.npz": ["train_labels: label 1 is 0.5; labels are classes"],
    "data=npz data.path=FILES/test_shape.npz": ["test images are 1x4x8 but training images are 1x8x8"],
    "data=npz data.path=FILES/test_labels_alone.npz": ["test_labels but no test_images"],
    "data=npz data.path=FILES/objects.npz": ["objects.npz: not a readable .npz file"],
    "data=npz data.path=FILES/cut.npz": ["cut.npz: not a readable .npz file"],
    "data=npz data.path=FILES/text.npz": ["text.npz: not a readable .npz file"],
    "data=npz data.path=FILES/plain.npz": ["trainer.batch_size=128 is larger than the training split (49 images)"],
    # combinations
    "data=npz data.path=FILES/grey_test.npz model.likelihood=bernoulli trainer.batch_size=8": ["needs binary pixels"],
    "model=cvae data=npz data.path=FILES/unseen.npz trainer.batch_size=8": ["training images of npz is of class 3"],
    "model=cvae data=npz data.path=FILES/half_labelled.npz trainer.batch_size=8": [
        "model=cvae is conditional on the label, and test_labels are missing"
    ],
    "model=cvae data=npz data.path=FILES/several_classes.npz trainer.batch_size=8": [
        "train_labels name several classes, or none, of an image"
    ],
    "trainer.learning_rate=inf": ["trainer.learning_rate must be a finite number"],
    "~model": ["must be given: model."],
    f"output_dir={'a' * 300}": ["File name too long"],
    "output_dir=a=b": ["quote values"],
    "+estimator.function.weight=2": ["got an unexpected keyword argument 'weight'"],
    "estimator.function._target_=vaerun.storage.json_files.write_json": ["choose one of vaerun.estimators"],
    "model=cvae data=npz data.path=FILES/plain.npz": ["model=cvae is conditional", "has no labels"],
    "model.conditional_prior=true": ["model.conditional_prior=true needs model.conditional=true"],
    "network=conv data=npz data.path=FILES/small.npz trainer.batch_size=8 model.encoder.channels=[4,4,4]": [
        "images of 3x3 are too small for 3 strided convolutions"
    ],
    "model=ppca model.decoder.hidden=[8]": ["model.fit=closed_form needs an unconditional linear decoder"],
    "model=ppca model.latent_dim=64": ["model.latent_dim=64 must be below the 64 pixels"],
    "model.fit=closed_form": ["model.fit=closed_form needs an unconditional linear decoder"],
    "model=vae model.encoder=null": ["encoder"],
    "model=vae_hf model.conditional=true model.conditional_prior=true": ["estimator=elbo", "use estimator=elbo_mc"],
    "model.inference._target_=vaerun.inference.Laplac": ["vaerun.inference has no public attribute 'Laplac'"],
    "model.inference._target_=vaerun.nope.Laplace": ["cannot import vaerun.nope"],
    "model.inference._target_=os.system": ["'os.system' is outside vaerun", "VAERUN_PLUGINS"],
    "estimator.function._target_=subprocess.run": ["'subprocess.run' is outside vaerun"],
    "data.source._target_=os.getcwd": ["'os.getcwd' is outside vaerun"],
    # devices, checkpoints, folders
    "trainer.device=nonsense": ["trainer.device=nonsense is not a device"],
    "trainer.device=meta": ["trainer.device=meta is not supported"],
    "trainer.resume=none.pt": ["trainer.resume: there is no checkpoint none.pt", "auto, never"],
    "trainer.resume=FILES/text.pt": ["trainer.resume: cannot read the checkpoint", "text.pt"],
    "output_dir=mine.txt": ["mine.txt"],
    "output_dir=mine.txt/below": ["mine.txt/below"],
    "output_dir=/proc/vaerun": ["/proc/vaerun"],
}


@pytest.mark.parametrize("words", TABLE)
def test_refused(words: str, vaerun: Any, work: Path, files: Path) -> None:
    assert_refused(vaerun, work, shlex.split(words.replace("FILES", str(files))), *TABLE[words])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda(vaerun: Any, work: Path) -> None:
    assert_refused(vaerun, work, ["trainer.device=cuda"], "0 CUDA devices", "trainer.device=cpu")


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_data_folder_missing(data: str, vaerun: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAERUN_DATA", "/nowhere/at/all")
    assert_refused(vaerun, work, [f"data={data}"], "VAERUN_DATA=/nowhere/at/all: no such folder")


def test_plugin_not_installed(vaerun: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAERUN_PLUGINS", "no_such_package")
    plugins._declared.cache_clear()
    try:
        assert_refused(vaerun, work, [], "plugin package 'no_such_package'", "is not installed")
    finally:
        plugins._declared.cache_clear()


@pytest.mark.parametrize("kind", ["weights only", "other model", "of a folder without one"])
def test_resume_from_a_wrong_checkpoint(kind: str, vaerun: Any, work: Path) -> None:
    code, _, err = vaerun(*TINY.split(), "output_dir=run")
    assert code == 0, err
    name, words, part = {
        "weights only": ("run/checkpoints/best.pt", TINY.split(), "is not a training checkpoint: name a last.pt"),
        "other model": ("run", ["model=vae"], "does not fit this run's model"),
        "of a folder without one": ("run/figures", TINY.split(), "there is no checkpoint"),
    }[kind]
    assert_refused(vaerun, work, [*words, f"trainer.resume={name}", "output_dir=new"], part)


@pytest.mark.parametrize("content", ["{damaged", "[]", "{}", '"text"'])
def test_damaged_result(content: str, vaerun: Any, work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / "result.json").write_text(content)
    (work / "out" / ".lock").touch()
    assert_refused(vaerun, work, ["output_dir=out"], "result.json", "output_dir")


def test_folder_of_something_else(vaerun: Any, work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / "thesis.tex").write_text("all of it")
    (work / "out" / ".lock").touch()
    assert_refused(vaerun, work, ["output_dir=out"], "out is not empty and holds no vaerun run", "another output_dir")


def test_run_of_another_configuration(vaerun: Any, work: Path) -> None:
    assert vaerun(*TINY.split(), "output_dir=out")[0] == 0
    words = [*TINY.split(), "output_dir=out", "seed=1"]
    assert_refused(vaerun, work, words, "out holds a run of another configuration", "trainer.resume=never")


def test_working_folder_stays(vaerun: Any, work: Path) -> None:
    (work / "mine.txt").unlink()
    assert vaerun("seed=-1")[0] == 2
    assert work.is_dir()
    assert tree(work) == {}


def test_empty_folder_of_the_users_stays(vaerun: Any, work: Path) -> None:
    (work / "out").mkdir()
    assert_refused(vaerun, work, ["output_dir=out", "seed=-1"], "seed")


def test_folder_in_use(vaerun: Any, work: Path) -> None:
    # The other run has only acquired its lock so far, and must not lose it.
    (work / "out").mkdir()
    with filelock.FileLock(work / "out" / ".lock"):
        assert_refused(vaerun, work, ["output_dir=out"], "another run is using", "out")


def test_diverging_run(vaerun: Any, work: Path) -> None:
    words = [*TINY.split(), "trainer.learning_rate=1e30", "trainer.batch_size=32", "output_dir=out"]
    code, _, err = vaerun(*words)
    assert code == 1
    lines = [line for line in err.splitlines() if not line.startswith(("epoch ", "vaerun: data: "))]
    assert len(lines) == 1
    assert lines[0].startswith("vaerun: error: training stopped at step 2: the term '")
    assert "likely cause" in lines[0]
    record = json.loads((work / "out" / "result.json").read_text())
    assert record["status"] == "failed"
    assert record["error"] in lines[0]
