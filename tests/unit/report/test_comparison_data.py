"""Several data sets, and several kinds of models, in one table: side by side, never in one cell or compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.sweeps.records import compare, run

from vaerun.errors import InputError
from vaerun.report.cells import shorten_paths
from vaerun.report.comparison import compare as all_tables
from vaerun.report.significance import paired_tests
from vaerun.report.table_spec import TableSpec


def own_data(name: str, sha: str, images: int) -> dict[str, Any]:
    """Settings and protocol of a run on a file."""
    return {
        "data.name": "npz",
        "data.path": f"/data/{name}/images.npz",
        "record.data": "npz",
        "record.protocol.data_sha256": sha * 32,
        "record.protocol.images": {"train": 9 * images, "validation": 0, "test": images},
        "record.protocol.split": f"{images} images",
        "record.protocol.evaluated_images": images,
    }


CATS, DOGS = own_data("cats", "aa", 40), own_data("dogs", "bb", 60)


@pytest.fixture
def two_files(tmp_path: Path) -> Path:
    """A VAE and a VLAE, two seeds each, on two files of one name."""
    for place, data, base in (("a", CATS, 10.0), ("b", DOGS, 10.1)):
        for seed in (0, 1):
            run(tmp_path / place, "vae", None, seed, base + seed, **data)
            run(tmp_path / place, "vlae", 4, seed, base + seed + 5, **data)
    return tmp_path


def test_two_files_in_rows(two_files: Path) -> None:
    table = compare(two_files, TableSpec(rows="data.path", columns="none", where=("model=vae",)))
    assert {row: cell.mean for (row, _), cell in table.cells.items()} == {
        "cats/images.npz": 10.5,
        "dogs/images.npz": pytest.approx(10.6),
    }
    assert "data differs along data.path: numbers are not comparable across it" in table.notes
    assert not any("distinguishable" in note or "uncertain" in note for note in table.notes)
    assert paired_tests(table) == []


def test_two_files_among_other_rows(two_files: Path) -> None:
    table = compare(two_files, TableSpec(rows="model,data.path", columns="none"))
    assert set(table.rows) == {
        f"{model}, path={name}/images.npz" for model in ("VAE", "VLAE") for name in ("cats", "dogs")
    }
    pairs = {frozenset((test.a.row, test.b.row)) for test in paired_tests(table)}
    assert pairs == {
        frozenset(f"{model}, path={name}/images.npz" for model in ("VAE", "VLAE")) for name in ("cats", "dogs")
    }


def test_the_name_of_the_data_alone_does_not_merge_two_files(two_files: Path) -> None:
    table = compare(two_files, TableSpec(rows="data", columns="model"))
    assert table.rows == ["npz, path=cats/images.npz", "npz, path=dogs/images.npz"]
    table = compare(two_files, TableSpec(rows="model", columns="data"))
    assert table.columns == ["data=npz, path=cats/images.npz", "data=npz, path=dogs/images.npz"]


def test_one_data_set_at_two_places_is_one_row(tmp_path: Path) -> None:
    run(tmp_path / "a", "vae", None, 0, 1.0, **CATS)
    run(tmp_path / "b", "vae", None, 1, 3.0, **CATS | {"data.path": "/moved/images.npz"})
    assert compare(tmp_path, TableSpec(rows="data", columns="none")).cells["npz", "all"].mean == 2.0


def test_by_default_two_files_are_refused_and_the_advice_works(two_files: Path) -> None:
    with pytest.raises(InputError) as caught:
        compare(two_files, TableSpec())
    text = str(caught.value)
    rows = text.partition("--rows ")[2].partition(", or allow")[0]
    assert rows == "model,data.path"
    assert len(compare(two_files, TableSpec(rows=rows)).rows) == 4
    assert "choose by --where data.path=VALUE" in text
    assert compare(two_files, TableSpec(where=("data.path=/data/dogs/images.npz",))).rows == ["VAE", "VLAE"]
    named = text.rpartition("--mix ")[2]
    assert compare(two_files, TableSpec(mix=(named,))).mixed


def test_counts_of_images_follow_the_data(tmp_path: Path) -> None:
    """Of generated images and their classifier too."""
    for data, images in ((CATS, 40), (DOGS, 60)):
        run(
            tmp_path / str(images), "gan", None, 0, None, **data,
            **{
                "model.family": "adversarial",
                "record.metrics.test/classifier_frechet_distance": images / 10,
                "record.protocol.generated": {"samples": images, "neighbours": 5},
                "record.details": {"classifier": {"name": f"own{images}"}},
            },
        )  # fmt: skip
    spec = TableSpec(rows="data.path", columns="none")
    assert [cell.mean for cell in compare(tmp_path, spec).cells.values()] == [4.0, 6.0]


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (["/a/x.npz", "/a/y.npz"], ["x.npz", "y.npz"]),
        (["/a/x/i.npz", "/b/x/i.npz"], ["a/x/i.npz", "b/x/i.npz"]),
        (["i.npz", "/i.npz"], ["i.npz", "/i.npz"]),
        (["/data/i.npz"], ["i.npz"]),
        ([], []),
    ],
)
def test_paths_are_shortened_as_far_as_they_differ(paths: list[str], short: list[str]) -> None:
    assert shorten_paths(paths) == dict(zip(paths, short, strict=True))


# -- several kinds --------------------------------------------------------------------------------------------------

GAN = {
    "model.family": "adversarial",
    "record.protocol.family": "adversarial",
    "record.protocol.units": "nats per image under N(G(z), s2 I)",
    "record.protocol.likelihood": None,
}


def test_a_run_without_the_metric_is_no_obstacle(tmp_path: Path) -> None:
    """A VAE and a GAN: each has its own metric."""
    run(tmp_path, "vae", None, 0, 1.0)
    run(tmp_path, "gan", None, 0, None, **GAN, **{"record.metrics.test/classifier_frechet_distance": 0.5})
    run(tmp_path, "gan", None, 1, None, "failed", **GAN)
    likelihood, distance = all_tables(tmp_path, TableSpec())
    assert (likelihood.metric, likelihood.cells["VAE", "-"].mean) == ("test/log_likelihood", 1.0)
    assert likelihood.cells["GAN", "-"].n == 0
    assert (distance.metric, distance.cells["GAN", "-"].mean) == ("test/classifier_frechet_distance", 0.5)


# -- adaptive importance sampling -----------------------------------------------------------------------------------


def amis(starts: int, value: float, **more: Any) -> dict[str, Any]:
    return {
        "evaluation.amis": {"enabled": None, "starts": starts},
        "record.fingerprint": f"starts {starts}",
        "record.metrics.test/amis": value,
        "record.protocol.amis": {"starts": starts, "images": 20},
        **more,
    }


def test_settings_of_amis_matter_to_its_own_metrics_only(tmp_path: Path) -> None:
    run(tmp_path / "a", "vae", None, 0, 1.0, **amis(4, 2.0))
    run(tmp_path / "b", "vae", None, 0, 1.0, **amis(8, 2.5))
    (table,) = all_tables(tmp_path, TableSpec())
    assert (table.metric, table.cells["VAE", "-"].values) == ("test/log_likelihood", {"0": 1.0})
    assert (
        "VAE: a/vae_tNone_0 and b/vae_tNone_0 differ in evaluation.amis.starts only, which the metrics shown do not "
        "depend on: counted once"
    ) in table.notes
    assert any(
        note.startswith("test/amis omitted: these runs are not comparable: amis.starts is 4") for note in table.notes
    )
    with pytest.raises(InputError, match=r"amis.starts is 4 in .* --rows model,evaluation.amis.starts"):
        compare(tmp_path, TableSpec(metric="test/amis"))
    tables = all_tables(tmp_path, TableSpec(rows="model,evaluation.amis.starts"))
    assert [[cell.mean for cell in table.cells.values()] for table in tables] == [[1.0, 1.0], [2.0, 2.5]]


def test_of_two_that_count_once_the_one_with_more_metrics_stands(tmp_path: Path) -> None:
    run(tmp_path / "a", "vae", None, 0, 1.0, **{"evaluation.amis": {"enabled": False}, "record.fingerprint": "without"})
    run(tmp_path / "b", "vae", None, 0, 1.0, **amis(8, 2.5))
    tables = all_tables(tmp_path, TableSpec())
    assert [cell.mean for table in tables for cell in table.cells.values()] == [1.0, 2.5]


@pytest.mark.parametrize("asked", ["amis", "tst/amis", "val/amis"])
def test_a_metric_of_amis_that_is_misspelled(tmp_path: Path, asked: str) -> None:
    run(tmp_path, "vae", None, 0, 1.0, **amis(4, 2.0))
    with pytest.raises(InputError, match=rf"no finished run has the metric {asked}\. Did you mean test/amis\?"):
        compare(tmp_path, TableSpec(metric=asked))
