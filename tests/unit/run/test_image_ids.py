"""images.npz and the columns of per_example.npz: rows and file names, of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vaerun.data.arrays import Arrays
from vaerun.data.dataset import ImageData, Split
from vaerun.data.description import describe_data
from vaerun.data.transforms import Transform
from vaerun.evaluation.results import EvaluationResults
from vaerun.run.evaluate.extremes import extremes_line
from vaerun.run.evaluate.write import write_evaluation
from vaerun.run.image_ids import read_image_ids, write_image_ids
from vaerun.storage.npz import read_npz
from vaerun.tracking.logger import NullLogger


def make_data(count: int, ids: np.ndarray | None = None) -> ImageData:
    images = np.zeros((count, 1, 2, 2), dtype=np.uint8)
    given = {} if ids is None else {"train": ids}
    arrays = Arrays(images, None, images[:10_000], None, "official", ids=given)
    return ImageData("some", arrays, validation=0.1)


@pytest.mark.parametrize("name", ["/b/{}.png", "\u00e4\u4e2d/{}.png", "\udcff{}.png"])
def test_file_names_are_kept_as_they_are(name: str, tmp_path: Path) -> None:
    data = make_data(40, np.array([name.format(i) for i in range(40)]))
    write_image_ids(tmp_path, data)
    ids = read_image_ids(tmp_path, {"dataset": describe_data(data)})
    assert {k: v.tolist() for k, v in ids.items()} == {
        split: getattr(data, split).ids.tolist() for split in ("train", "validation", "test")
    }
    assert set(ids["train"]) | set(ids["validation"]) == {name.format(i) for i in range(40)}


def test_rows_take_little_space(tmp_path: Path) -> None:
    data = make_data(50_000)
    write_image_ids(tmp_path, data)
    assert (tmp_path / "images.npz").stat().st_size < 200_000
    ids = read_image_ids(tmp_path, {"dataset": describe_data(data)})
    assert all(found.dtype == np.int32 for found in ids.values())
    np.testing.assert_array_equal(ids["validation"], data.validation.ids)


def test_rows_that_need_64_bits_are_kept(tmp_path: Path) -> None:
    data = make_data(20, np.arange(20) + 2**40)
    write_image_ids(tmp_path, data)
    assert read_image_ids(tmp_path, {"dataset": describe_data(data)})["train"].min() >= 2**40


@pytest.mark.parametrize(("ids", "column"), [(np.array([7, 5, 6]), "row"), (np.array(["c", "a", "b"]), "file")])
def test_a_column_names_the_images(ids: np.ndarray, column: str, tmp_path: Path) -> None:
    results = EvaluationResults(per_image={"elbo": torch.arange(3.0)}, ids=ids)
    write_evaluation(tmp_path, results, "test", NullLogger(), 0, 0.0)
    write_evaluation(tmp_path, results, "x/test", NullLogger(), 0, 0.0, "x")
    found = read_npz(tmp_path / "per_example.npz")
    assert found.keys() == {column, "elbo", f"x/{column}", "x/elbo"}
    np.testing.assert_array_equal(found[column], ids)
    np.testing.assert_array_equal(found[f"x/{column}"], ids)


# -- the ends --------------------------------------------------------------------------------------------------------


def make_split(ids: np.ndarray, labels: list[int] | None = None) -> Split:
    images = torch.zeros(len(ids), 1, 2, 2, dtype=torch.uint8)
    given = None if labels is None else torch.tensor(labels)
    return Split("test", images, given, 0 if labels is None else 2, Transform(), False, ids)


def test_ends_by_file_and_class() -> None:
    split = make_split(np.array(["a.png", "b\x1b[31m.png", "c.png", "d" * 99]), [0, 1, 0, 1])
    values = torch.tensor([2.0, -1.0, torch.nan, 7.126])
    line = extremes_line(EvaluationResults(per_image={"log_likelihood": values}), split, ("cat", "dog"))
    assert line == (
        "hardest of 4 test images by test/log_likelihood (nats): b?[31m.png (class dog) -1.00; "
        f"easiest: …{'d' * 59} (class dog) 7.13"
    )


def test_ends_of_errors_are_the_other_way_round() -> None:
    results = EvaluationResults(per_image={"reconstruction_error": torch.arange(8.0)})
    line = extremes_line(results, make_split(np.arange(8) + 10), ())
    assert line == (
        "hardest of 8 test images by test/reconstruction_error (squared error): row 17 7.00, row 16 6.00, row 15 5.00; "
        "easiest: row 10 0.00, row 11 1.00, row 12 2.00"
    )


def test_the_number_that_compares_models_comes_first() -> None:
    per_image = {"log_likelihood": torch.arange(8.0), "amis": -torch.arange(4.0)}
    line = extremes_line(EvaluationResults(per_image=per_image), make_split(np.arange(8)), ())
    assert line is not None
    assert line.startswith("hardest of 4 test images by test/amis (nats): row 3 -3.00, row 2 -2.00; easiest: row 0 ")


@pytest.mark.parametrize("values", [{}, {"amis": [1.0]}, {"amis": [torch.nan, 1.0]}, {"ais": [1.0, 2.0]}])
def test_too_few_images_have_no_ends(values: dict[str, list[float]]) -> None:
    results = EvaluationResults(per_image={name: torch.tensor(value) for name, value in values.items()})
    assert extremes_line(results, make_split(np.arange(2)), ()) is None
