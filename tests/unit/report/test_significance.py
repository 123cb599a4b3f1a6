"""Standard errors of differences and paired tests, against computations by hand."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.sweeps.records import compare, per_image, run

from vaerun.report.cells import Cell
from vaerun.report.comparison import Comparison
from vaerun.report.formats import to_markdown
from vaerun.report.significance import comparable_pairs, inconclusive_differences, paired_test, standard_error
from vaerun.report.table_spec import TableSpec


def table_of(root: Path, values: dict[tuple[str, int | None], list[float]]) -> Comparison:
    for (model, steps), numbers in values.items():
        for seed, value in enumerate(numbers):
            run(root, model, steps, seed, value)
    return compare(root, TableSpec())


def names(compared: list[tuple[Cell, Cell]]) -> list[tuple[str, str]]:
    return [(first.name, second.name) for first, second in compared]


def test_standard_error_of_a_difference(tmp_path: Path) -> None:
    table = table_of(tmp_path, {("vlae", 4): [1.0, 3.0, 5.0], ("sa_vae", 4): [2.0, 3.0]})
    first, second = table.cells["VLAE", "T=4"], table.cells["SA-VAE", "T=4"]
    assert standard_error(first, second) == pytest.approx(math.sqrt(4 / 3 + 0.5 / 2))


def test_which_cells_are_compared(tmp_path: Path) -> None:
    table = table_of(tmp_path, {(m, t): [1.0] for m in ("vlae", "sa_vae") for t in (1, 4)} | {("vae", None): [1.0]})
    assert sorted(names(list(comparable_pairs(list(table.cells.values()), table.empty)))) == [
        ("SA-VAE T=1", "VAE"), ("SA-VAE T=1", "VLAE T=1"), ("SA-VAE T=4", "VAE"), ("SA-VAE T=4", "VLAE T=4"),
        ("VLAE T=1", "VAE"), ("VLAE T=4", "VAE"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shift", "flagged"), [(0.99, True), (1.0, True), (1.01, False), (-0.99, True), (-1.01, False)]
)
def test_differences_within_their_standard_error(tmp_path: Path, shift: float, flagged: bool) -> None:
    """Two seeds at ±a have variance 2 a^2, so the standard error of the difference is sqrt(2 a^2 / 2 * 2) = 1."""
    a = math.sqrt(0.5)
    values = {("vlae", 4): [10 - a, 10 + a], ("vae", None): [10 + shift - a, 10 + shift + a]}
    table = table_of(tmp_path, values)
    compared = list(comparable_pairs(list(table.cells.values()), table.empty))
    if abs(shift) != 1.0:  # rounding decides there
        assert bool(inconclusive_differences(compared, 2)) == flagged
    prefix = "not distinguishable with these seeds (difference within its standard error): "
    if shift == 0.99:
        assert f"{prefix}VLAE T=4 and VAE (difference -0.99, standard error 1.00)" in table.notes


def test_equal_cells_are_not_told_apart(tmp_path: Path) -> None:
    table = table_of(tmp_path, {("vlae", 4): [10.0, 10.0], ("vae", None): [10.0, 10.0]})
    assert inconclusive_differences(list(comparable_pairs(list(table.cells.values()), table.empty)), 2)


def test_along_a_row(tmp_path: Path) -> None:
    table = table_of(tmp_path, {("vlae", 1): [1.0, 3.0], ("vlae", 2): [2.0, 3.0], ("vlae", 4): [11.0, 13.0]})
    line = next(note for note in table.notes if note.startswith("not distinguishable along the row: "))
    assert "VLAE T=1 and VLAE T=2 (difference -0.50, standard error 1.12)" in line
    assert "T=4" not in line


def test_how_many_seeds(tmp_path: Path) -> None:
    table = table_of(tmp_path, {("vlae", 4): [1.0, 3.0], ("vae", None): [9.0, 9.5, 9.7], ("vae_hf", 4): [1.0]})
    assert "seeds: 1 in VAE+HF T=4; 2 in VLAE T=4; 3 in VAE (0, 1, 2)" in table.notes
    assert "only one seed in VAE+HF T=4: its spread over seeds is unknown" in table.notes
    assert not any("VAE+HF" in note for note in table.notes if note.startswith("not told"))


def test_paired_by_seed(tmp_path: Path) -> None:
    table = table_of(tmp_path, {("vlae", 4): [10.0, 20.0, 30.0, 4.0], ("vae", None): [9.0, 17.0, 28.0]})
    result = paired_test(table.cells["VLAE", "T=4"], table.cells["VAE", "-"])
    assert result.seeds == ("0", "1", "2")
    assert result.mean == 2.0  # of 1, 3, 2: sd 1
    assert result.se == pytest.approx(1 / math.sqrt(3))
    assert result.t == pytest.approx(2 * math.sqrt(3))
    assert result.p == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2))
    assert result.p == pytest.approx(
        1 - 2 * math.sqrt(3) / math.sqrt(12 + 2)
    )  # the closed form for 2 degrees of freedom


@pytest.mark.parametrize(("vae", "seeds", "mean"), [([9.0], ("0",), 1.0), ([9.0, 19.0], ("0", "1"), 1.0)])
def test_too_few_or_equal_differences(tmp_path: Path, vae: list[float], seeds: tuple[str, ...], mean: float) -> None:
    table = table_of(tmp_path, {("vlae", 4): [10.0, 20.0], ("vae", None): vae})
    result = paired_test(table.cells["VLAE", "T=4"], table.cells["VAE", "-"])
    assert (result.seeds, result.mean, result.t, result.p) == (seeds, mean, None, None)
    text = to_markdown([table], [result])
    assert ("fewer than 2 common seeds" if len(vae) == 1 else "all differences are equal") in text


def two(root: Path, first: Any, second: Any, **changes: Any) -> Any:
    """The comparison over images of two runs with these per-image values."""
    folders = (
        run(root, "vlae", 4, 0, float(np.mean(first))),
        run(root, "vae", None, 0, float(np.mean(second)), **changes),
    )
    for folder, values in zip(folders, (first, second), strict=True):
        per_image(folder, values)
    table = compare(root, TableSpec(mix=("all",)))
    return paired_test(table.cells["VLAE", "T=4"], table.cells["VAE", "-"]).images["0"]


def test_paired_over_images(tmp_path: Path) -> None:
    mean, error, count = two(tmp_path, [1.0, 5.0, 9.0], [0.0, 3.0, 6.0])  # differences 1, 2, 3: sd 1
    assert (mean, count) == (2.0, 3)
    assert error == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"record.protocol.data_sha256": "x"}, "different images"),
        ({"record.protocol.evaluated_images": 3}, "different images"),
        ({"record.protocol.evaluated_split": "train"}, "different images"),
        ({"record.metrics.test/log_likelihood": 7.0}, "contradict result.json"),
    ],
)
def test_no_pairs_of_other_images(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    assert why in two(tmp_path, [1.0, 5.0], [0.0, 3.0], **changes)


def test_other_lengths(tmp_path: Path) -> None:
    assert two(tmp_path, [1.0, 5.0], [0.0, 3.0, 3.0]) == "2 and 3 images"


class Malice:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("loaded"),))


def test_values_per_image_of_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    two(tmp_path, [1.0, 5.0], [0.0, 3.0])
    path = tmp_path / "vae_tNone_0" / "per_example.npz"

    def images() -> Any:
        table = compare(tmp_path, TableSpec())
        return paired_test(table.cells["VLAE", "T=4"], table.cells["VAE", "-"]).images["0"]

    np.savez(path, log_likelihood=np.array([Malice(), Malice()], dtype=object), allow_pickle=True)
    assert "cannot be read" in images()
    path.write_bytes(pickle.dumps(Malice()))
    assert "cannot be read" in images()
    assert not (tmp_path / "loaded").exists()
    path.write_bytes(path.read_bytes()[:-3])
    assert "cannot be read" in images()
    path.unlink()
    assert "cannot be read" in images()
    np.savez(path, elbo=np.zeros(2))
    assert images() == "no log_likelihood per image"
    np.savez(path, log_likelihood=np.array(["a", "b"]))
    assert "not a list of numbers" in images()
    np.savez(path, log_likelihood=np.array([np.nan, 1.0]))
    assert "not finite" in images()
