"""Parts of a package outside vaerun; the examples of docs/extending.md and README.md."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from support.runs.commands import FAST_AMIS

PACKAGE = '''
import torch
from vaerun.data.arrays import Arrays
from vaerun.distributions import DiagonalNormal
from vaerun.estimators import Estimate, elbo
from vaerun.nets.init import head


class Narrow(torch.nn.Module):
    """Amortised mean, one variance for all images."""

    def __init__(self, encoder, latent_dim, *, log_variance=-2.0):
        super().__init__()
        self.encoder, self.mean, self.log_variance = encoder, head(encoder.features, latent_dim), log_variance

    def forward(self, joint):
        mean = self.mean(self.encoder(joint.inputs, joint.c))
        return DiagonalNormal(mean, torch.full_like(mean, self.log_variance))


def squares(scratch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (120, 1, 6, 5), generator=generator, dtype=torch.uint8).numpy()
    return Arrays(images[:100], None, images[100:], None, split="mine: the last 20")


def doubled(joint, q, samples, *, weight=2.0):
    estimate = elbo(joint, q, samples)
    return Estimate(estimate.bound, weight * estimate.surrogate, estimate.terms)
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package `mine` beside the tests, with its own config groups."""
    root = tmp_path / "mine"
    for group, text in {
        "model/narrow": "# A posterior of one width\nname: narrow\ninference:\n  _target_: mine.Narrow\n",
        "data/squares": "# Random squares\nname: squares\nsource:\n  _target_: mine.squares\nvalidation: 20\n",
        "estimator/doubled": "# Twice the ELBO\nname: doubled\nfunction:\n  _target_: mine.doubled\n  weight: 3.0\n",
    }.items():
        path = root / "configs" / f"{group}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (root / "__init__.py").write_text(PACKAGE)
    return tmp_path


def vaerun(folder: Path, *arguments: str, trusted: str = "mine") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "VAERUN_CACHE": str(folder / "cache")}
    environment |= {"VAERUN_PLUGINS": trusted} if trusted else {}
    command = [sys.executable, "-m", "vaerun.cli.main", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_parts_of_another_package_run_together(package: Path) -> None:
    small = ["trainer.epochs=1", "trainer.batch_size=40", "evaluation.samples=10", *FAST_AMIS, "output_dir=run"]
    done = vaerun(package, "model=narrow", "data=squares", "estimator=doubled", *small)
    assert done.returncode == 0, done.stderr
    result = json.loads((package / "run" / "result.json").read_text())
    assert (result["model"], result["data"], result["estimator"]) == ("narrow", "squares", "doubled")
    assert result["protocol"]["images"] == {"train": 80, "validation": 20, "test": 20}
    assert result["protocol"]["split"] == "mine: the last 20"


def test_help_shows_them(package: Path) -> None:
    text = vaerun(package, "--help").stdout
    assert "A posterior of one width" in text
    assert "Random squares" in text


def test_a_package_that_nobody_trusts_is_refused(package: Path) -> None:
    done = vaerun(package, "model.inference._target_=mine.Narrow", "output_dir=run", trusted="")
    assert done.returncode == 2
    assert "VAERUN_PLUGINS" in done.stderr
    assert not (package / "run").exists()


def documented(document: str, language: str) -> list[str]:
    """Fenced blocks of a document."""
    text = (Path(__file__).parents[3] / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_documented_package_runs(tmp_path: Path) -> None:
    code = "\n".join(documented("docs/extending.md", "python"))
    root = tmp_path / "my_package"
    files = re.findall(r"^# my_package/(configs/\S+\.yaml): (\{.*\})$", code, flags=re.MULTILINE)
    assert len(files) == 3
    for name, text in files:
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(text)
    (root / "__init__.py").write_text(code)
    images = numpy.random.RandomState(0).randint(0, 256, (220, 1, 6, 5)).astype(numpy.uint8)
    numpy.save(tmp_path / "squares.npy", images)
    small = ["trainer.epochs=1", "trainer.batch_size=40", "evaluation.samples=10", *FAST_AMIS, "output_dir=run"]
    words = ["model=narrow", "data=squares", "estimator=doubled", *small]
    done = vaerun(tmp_path, *words, trusted="my_package")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["protocol"]["split"] == "the last 100"


def test_the_readme_s_python_example_runs(tmp_path: Path) -> None:
    small = ["trainer.max_steps=2", "evaluation.samples=10", "evaluation.images=20", *FAST_AMIS, "output_dir=run"]
    done = vaerun(tmp_path, *small, trusted="")
    assert done.returncode == 0, done.stderr
    (example,) = documented("README.md", "python")
    code = re.sub(r'load_run\(".*?"\)', 'load_run("run")', example).replace("samples=5000", "samples=20")
    checks = "\nassert z.shape[:2] == log_w.shape == (10, 100)\n"
    done = subprocess.run(
        [sys.executable, "-c", code + checks], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
