"""Published numbers are shown with the differences, and footnotes list the differences in protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.sweeps.records import compare, config, job, paper, run, write_plan

from vaerun.errors import InputError
from vaerun.report.comparison import Comparison
from vaerun.report.formats import table_rows
from vaerun.report.published import load_published, published_names
from vaerun.report.table_spec import TableSpec

CHART = {  # of the authors' slides: T = 1, 2, 4, 8
    "SA-VAE": (2366, 2366, 2366, 2365),
    "VAE+HF": (2366, 2361, 2362, 2357),
    "VLAE": (2374, 2381, 2387, 2392),
}
POSTER = {
    "SA-VAE": (-85.20, -85.10, -85.42, -85.24),
    "VAE+HF": (-85.27, -85.31, -85.22, -85.41),
    "VAE+IAF": (-84.25, -84.15, -84.03, -83.80),
    "VLAE": (-83.71, -83.84, -83.73, -83.60),
}


def published_of(table: Comparison) -> dict[str, tuple[float | None, ...]]:
    return {
        row: tuple(table.cells[row, f"T={t}"].published for t in (1, 2, 4, 8))
        for row in table.rows
        if (row, "T=1") in table.cells
    }


def lines(table: Comparison) -> dict[str, list[str]]:
    return {line[0]: line[1:] for line in table_rows(table)}


def test_cifar10(tmp_path: Path) -> None:
    paper(tmp_path)
    table = compare(tmp_path, TableSpec(published="vlae_cifar10"))
    assert published_of(table) == CHART | {"VAE+IAF": (None,) * 4}
    assert table.cells["VAE", "-"].published == 2364
    assert lines(table)["VLAE, published"] == ["", "2374", "2381", "2387", "2392"]
    assert lines(table)["VLAE, difference"][1:4:2] == ["-533.00", "-541.00"]  # of 1836 + 5 sqrt(T)
    assert lines(table)["VAE, difference"][0] == "-553.90"
    assert "VAE+IAF, published" not in lines(table)


def test_mnist(tmp_path: Path) -> None:
    changes = {"data.name": "mnist", "model.likelihood": "bernoulli", "record.protocol.binarize": "dynamic"}
    run(tmp_path, "vae", None, 0, -86.0, **changes)
    table = compare(tmp_path, TableSpec(published="vlae_mnist_binary"))
    assert published_of(table) == POSTER
    assert lines(table)["VAE, published"][0] == "-85.37"
    assert lines(table)["VAE, difference"][0] == "-0.63"  # worse: these are log-likelihoods, not their negatives
    assert "protocol: binarisation: ours dynamic; published not stated in the source" in table.notes
    assert not any("protocol: likelihood" in note for note in table.notes)
    assert "higher is better" in load_published("vlae_mnist_binary").source


EXACT = {
    "trainer.epochs": 2000, "trainer.learning_rate": 0.0005, "trainer.variance_learning_rate": None,
    "record.protocol.evaluated_images": 10000,
}  # fmt: skip
STATED = {  # what differs, by the setting or entry that makes it differ
    "trainer.epochs": (15, "protocol: epochs: ours 15; published at most 2000"),
    "trainer.batch_size": (64, "protocol: batch size: ours 64; published 128"),
    "trainer.learning_rate": (0.001, "protocol: learning rate of Adam: ours 0.001; published 0.0005"),
    "trainer.variance_learning_rate": (
        0.01,
        "protocol: learning rate of log s2: ours 0.01; published that of the rest",
    ),
    "trainer.max_steps": (9, "protocol: limit of training steps: ours 9; published none"),
    "record.protocol.evaluated_images": (2000, "protocol: test images: ours 2000; published 10000"),
    "record.protocol.importance_samples": (100, "protocol: importance samples K: ours 100; published 5000"),
    "record.protocol.likelihood": ("bernoulli", "protocol: likelihood: ours bernoulli; published gaussian"),
    "record.protocol.dequantize": (True, "protocol: dequantisation: ours true; published false"),
    "model.inference.damping": ("none", "protocol: VLAE, damping of the mode search: ours none; published paper"),
}


@pytest.mark.parametrize("key", STATED)
def test_a_line_for_each_difference_of_protocol(tmp_path: Path, key: str) -> None:
    value, line = STATED[key]
    run(tmp_path / "same", "vlae", 4, 0, 1.0, **EXACT)
    same = compare(tmp_path, TableSpec(published="vlae_cifar10")).notes
    run(tmp_path / "other", "vlae", 4, 0, 1.0, **EXACT | {key: value})
    other = compare(tmp_path / "other", TableSpec(published="vlae_cifar10")).notes
    assert line not in same
    assert [note for note in other if note not in same] == [line]


def test_what_is_always_told(tmp_path: Path) -> None:
    run(tmp_path, "sa_vae", 4, 0, 1.0, **EXACT, **{"model.inference.step_size": 0.03})
    notes = "\n".join(compare(tmp_path, TableSpec(published="vlae_cifar10")).notes)
    assert "Park, Kim & Kim, Variational Laplace Autoencoders, ICML 2019" in notes
    assert "selection of the checkpoint: ours best val/elbo; published the best validation performance" in notes
    assert "network size (hidden layers): ours [128]; published not stated" in notes
    assert "latent dimensions: ours 16; published not stated" in notes
    assert "training images: ours 18000; published" in notes
    assert "the chart's legend says T=1, 2, 3, 4" in notes
    assert "SA-VAE: ours ascends each image's own ELBO; the authors' released code descends" in notes
    assert "SA-VAE, step size: ours 0.03; published chosen from 1, 0.1, 0.001, 0.0005 and 0.0001" in notes
    assert "damping" not in notes  # VLAE's


def test_cells_that_one_of_the_two_lacks(tmp_path: Path) -> None:
    run(tmp_path, "vae_iaf", 4, 0, 1.0)
    run(tmp_path, "vlae", 16, 0, 1.0)
    write_plan(tmp_path, [job("vae", config("vae", None))])
    table = compare(tmp_path, TableSpec(published="vlae_cifar10"))
    assert table.cells["VLAE", "T=4"].format(2) == "missing"
    assert ("VAE+IAF", "T=1") not in table.cells  # neither ours nor published
    assert lines(table)["VAE+IAF"] == ["", "", "", "1.0000 (n=1)", "", ""]
    assert "VAE+IAF: the source has no number for this method on CIFAR-10 with a Gaussian output" in table.notes
    assert "here, but not published: VAE+IAF T=4, VLAE T=16" in table.notes
    absent = next(note for note in table.notes if note.startswith("published, but not here: "))
    assert absent.count("T=") == 12
    assert "VAE, SA-VAE T=1" in absent


@pytest.mark.parametrize(
    ("changes", "question", "reason"),
    [
        ({"data.name": "digits"}, {}, "its data set is cifar10, here digits"),
        ({}, {"rows": "estimator"}, "its rows are model, here estimator"),
        ({}, {"columns": "none"}, "its columns are model.inference.steps, here none"),
        ({}, {"metric": "test/elbo"}, "its metric is test/log_likelihood, here test/elbo"),
    ],
)
def test_numbers_of_something_else(
    tmp_path: Path, changes: dict[str, Any], question: dict[str, str], reason: str
) -> None:
    """An error if requested; omitted with a footnote if from the configuration."""
    run(tmp_path, "vlae", 4, 0, 1.0, **changes, **{"sweep.table.published": "vlae_cifar10"})
    table = compare(tmp_path, TableSpec(**question))
    assert table.published is None
    omitted = f"published numbers (vlae_cifar10) omitted: {reason}"
    assert omitted in table.notes
    with pytest.raises(InputError, match=reason):
        compare(tmp_path, TableSpec(published="vlae_cifar10", **question))
    others = [note for note in table.notes if note != omitted]
    assert compare(tmp_path, TableSpec(published="none", **question)).notes == others


def test_names() -> None:
    assert published_names() == ["vlae_cifar10", "vlae_mnist_binary"]
    with pytest.raises(InputError, match=r"vlae_cifar. Did you mean vlae_cifar10\?"):
        load_published("vlae_cifar")
