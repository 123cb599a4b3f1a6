"""Numbers that are not comparable are not put side by side unless requested, and then a footnote says so."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.sweeps.records import compare, config, put, record, run, write_run

from vaerun.config.identity import fingerprint, identity
from vaerun.config.schema import Settings
from vaerun.config.settings import dotted_keys
from vaerun.errors import InputError
from vaerun.incidental import INCIDENTAL
from vaerun.report.protocol import canonical, is_irrelevant
from vaerun.report.runs import read_runs
from vaerun.report.table_spec import TableSpec

DIFFERENT: dict[str, Any] = {
    "data_sha256": "cd" * 32,
    "units": "bits",
    "likelihood": "bernoulli",
    "binarize": "dynamic",
    "dequantize": True,
    "logit": True,
    "conditional": True,
    "images.train": 100,
    "images.validation": 7,
    "images.test": 7,
    "split": "another",
    "validation_split": "another",
    "evaluated_split": "validation",
    "evaluated_images": 10000,
    "importance_samples": 100,
}


@pytest.mark.parametrize("key", DIFFERENT)
def test_each_part_of_the_protocol(tmp_path: Path, key: str) -> None:
    run(tmp_path, "vae", None, 0, 1.0)
    run(tmp_path, "vlae", 4, 0, 2.0, **{f"record.protocol.{key}": DIFFERENT[key]})
    with pytest.raises(InputError) as caught:
        compare(tmp_path, TableSpec())
    text = str(caught.value)
    assert f"{key} is " in text
    assert f"--mix {key}" in text
    assert "vae_tNone_0" in text
    assert "vlae_t4_0" in text
    assert "\n" not in text
    for allowed in (key, "all", f"logit,{key}"):
        table = compare(tmp_path, TableSpec(mix=(allowed,)))
        assert table.mixed
        assert any(note.startswith(f"mixed, as requested: {key} is ") for note in table.notes)
        assert table.cells["VLAE", "T=4"].mean == 2.0
    with pytest.raises(InputError):
        compare(tmp_path, TableSpec(mix=("trainer.epochs",)))


def test_the_data_set_itself_and_several_at_once(tmp_path: Path) -> None:
    run(tmp_path, "vae", None, 0, 1.0)
    run(tmp_path, "vlae", 4, 0, 2.0, **{"data.name": "mnist", "record.protocol.binarize": "fixed"})
    with pytest.raises(
        InputError, match=r"data is cifar10 in .* and mnist in .*; binarize is none .*--mix data,binarize"
    ):
        compare(tmp_path, TableSpec())
    assert compare(tmp_path, TableSpec(mix=("data", "binarize"))).mixed
    assert compare(tmp_path, TableSpec(where=("data=cifar10",))).rows == ["VAE"]


def test_what_follows_from_another_data_set_is_not_told_beside_it(tmp_path: Path) -> None:
    run(tmp_path, "vae", None, 0, 1.0)
    other = {f"record.protocol.{key}": value for key, value in DIFFERENT.items()}
    run(tmp_path, "vlae", 4, 0, 2.0, **{"data.name": "mnist", **other})
    with pytest.raises(InputError) as caught:
        compare(tmp_path, TableSpec())
    text = str(caught.value)
    assert "these runs are not comparable: data is cifar10 in vae_tNone_0 and mnist in vlae_t4_0; likelihood" in text
    assert "; and 5 more: choose by --where data=VALUE, or allow it by --mix data,units,likelihood," in text
    assert not any(f"{key} is" in text for key in ("data_sha256", "images.train", "split", "units", "evaluated_images"))
    named = text.rpartition("--mix ")[2]
    assert compare(tmp_path, TableSpec(mix=(named,))).mixed
    assert compare(tmp_path, TableSpec(where=("data=mnist",))).rows == ["VLAE"]


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"record.protocol.units": "none", "model.family": "adversarial"}, "model.family"),
        ({"record.protocol.units": "squared error"}, "model"),
        ({"record.protocol.likelihood": "bernoulli", "model.likelihood": "bernoulli"}, "model.likelihood"),
        ({"record.protocol.data_sha256": "cd" * 32, "data.path": "b.npz"}, "data.path"),
        ({"record.protocol.images.train": 100, "data.train_images": 100}, "data.train_images"),
        ({"record.protocol.evaluated_images": 7, "evaluation.images": 7}, "evaluation.images"),
    ],
)
def test_the_setting_to_choose_by_tells_the_runs_apart(tmp_path: Path, changes: dict[str, Any], setting: str) -> None:
    run(tmp_path, "vae", None, 0, 1.0)
    folder = run(tmp_path, "vlae", 4, 0, 2.0, **changes)
    with pytest.raises(InputError, match=f"choose by --where {setting}=VALUE"):
        compare(tmp_path, TableSpec())
    value = next(r.setting(setting) for r in read_runs(tmp_path)[0] if r.folder == folder)
    assert compare(tmp_path, TableSpec(where=(f"{setting}={value}",))).rows == ["VLAE"]


def test_many_differences_of_one_cell_are_counted(tmp_path: Path) -> None:
    run(tmp_path / "a", "vlae", 4, 0, 1.0)
    run(tmp_path / "b", "vlae", 4, 1, 3.0, **{f"trainer.new{i}": 1 for i in range(12)})
    with pytest.raises(InputError, match=r"; and 9 more: choose by --where trainer.new0=null, .* or --mix all$"):
        compare(tmp_path, TableSpec())


def test_k_counts_where_the_metric_depends_on_it(tmp_path: Path) -> None:
    run(tmp_path, "vae", None, 0, 1.0)
    run(tmp_path, "vlae", 4, 0, 2.0, **{"record.protocol.importance_samples": 100})
    assert compare(tmp_path, TableSpec(metric="test/elbo")).cells["VLAE", "T=4"].mean == -3.0
    with pytest.raises(InputError, match="importance_samples is 5000"):
        compare(tmp_path, TableSpec(metric="test/log_likelihood"))


def test_a_likelihood_does_not_matter_to_generated_images(tmp_path: Path) -> None:
    entries = {
        f"record.protocol.{k}": v for k, v in (("likelihood", None), ("units", "none"), ("family", "adversarial"))
    }
    made = {"record.metrics.test/classifier_frechet_distance": 0.5}
    run(tmp_path, "vae", None, 0, 1.0, **made, **{"record.details": {"classifier": {"name": "a"}}})
    run(tmp_path, "gan", None, 0, None, **made, **entries, **{"record.details": {"classifier": {"name": "a"}}})
    question = TableSpec(metric="test/classifier_frechet_distance")
    assert compare(tmp_path, question).cells["GAN", "-"].mean == 0.5
    run(tmp_path, "dcgan", None, 0, None, **made, **entries, **{"record.details": {"classifier": {"name": "b"}}})
    with pytest.raises(InputError, match=r"classifier is b in dcgan\S* and a in gan"):
        compare(tmp_path, question)


def test_an_axis_may_be_a_part_of_the_protocol(tmp_path: Path) -> None:
    for k in (100, 5000):
        for seed in (0, 1):
            changes = {"evaluation.samples": k, "record.protocol.importance_samples": k}
            run(tmp_path / str(k), "vlae", 4, seed, k + seed, **changes)
    table = compare(tmp_path, TableSpec(columns="evaluation.samples"))
    assert {column: cell.mean for (_, column), cell in table.cells.items()} == {
        "samples=100": 100.5,
        "samples=5000": 5000.5,
    }
    run(tmp_path, "vae", None, 0, 1.0, **{"evaluation.samples": 100, "record.protocol.importance_samples": 7})
    with pytest.raises(InputError, match=r"importance_samples is 100 in .* and 7 in"):
        compare(tmp_path, TableSpec(columns="evaluation.samples"))


def test_an_unfinished_run_is_of_the_wrong_protocol_too(tmp_path: Path) -> None:
    run(tmp_path, "vae", None, 0, 1.0)
    run(tmp_path, "vlae", 4, 0, None, "interrupted", **{"record.protocol.binarize": "fixed"})
    with pytest.raises(InputError, match="binarize"):
        compare(tmp_path, TableSpec())


def test_runs_of_one_cell_differ_in_their_seeds_only(tmp_path: Path) -> None:
    run(tmp_path / "a", "vlae", 4, 0, 1.0)
    run(tmp_path / "b", "vlae", 4, 1, 3.0, **{"trainer.epochs": 30})
    with pytest.raises(InputError) as caught:
        compare(tmp_path, TableSpec())
    text = str(caught.value)
    assert "(VLAE T=4) differ: trainer.epochs is 15 in a/vlae_t4_0 and 30 in b/vlae_t4_1" in text
    assert "--where trainer.epochs=15, or --rows model,trainer.epochs or --columns trainer.epochs, or --mix" in text
    assert compare(tmp_path, TableSpec(where=("trainer.epochs=15",))).cells["VLAE", "T=4"].mean == 1.0
    mixed = compare(tmp_path, TableSpec(mix=("trainer.epochs",)))
    assert mixed.cells["VLAE", "T=4"].mean == 2.0
    assert any(note.startswith("mixed in VLAE T=4, as requested: trainer.epochs is 15") for note in mixed.notes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.inference.step_size", 0.1),
        ("estimator.samples", 5),
        ("model.latent_dim", 3),
        ("trainer.resume", "/a.pt"),
    ],
)
def test_any_setting(tmp_path: Path, key: str, value: Any) -> None:
    run(tmp_path / "a", "vlae", 4, 0, 1.0, **({key: 0.03} if "size" in key else {}))
    run(tmp_path / "b", "vlae", 4, 1, 3.0, **{key: value})
    with pytest.raises(InputError, match=f"differ: {key} is"):
        compare(tmp_path, TableSpec())


@pytest.mark.parametrize(
    ("key", "value"),
    [(k, "x") for k in sorted(INCIDENTAL)]
    + [("sweep.jobs", 2), ("sweep.table.rows", "model"), ("trainer.resume", "never")],
)
def test_what_cannot_change_a_result_may_differ(tmp_path: Path, key: str, value: Any) -> None:
    run(tmp_path / "a", "vlae", 4, 0, 1.0)
    run(tmp_path / "b", "vlae", 4, 1, 3.0, **{key: value})
    assert compare(tmp_path, TableSpec()).cells["VLAE", "T=4"].mean == 2.0


def test_incidental_settings_are_those_of_the_fingerprint() -> None:
    """Both leave out the same settings. The paths of the data are replaced by their hash."""
    known = {*dotted_keys(asdict(Settings()))}
    assert known >= INCIDENTAL
    for key in known - {"seed"}:
        plain: dict[str, Any] = {"seed": 1}
        put(plain, key, "unusual")
        in_fingerprint = fingerprint(plain, "") != fingerprint({"seed": 1}, "")
        assert is_irrelevant(key, "unusual") != in_fingerprint, key
    plain = {"trainer": {"resume": "auto"}, "seed": 1}
    assert identity(plain) == identity(plain | {"trainer": {"resume": "never"}})
    assert is_irrelevant("trainer.resume", "auto")
    assert not is_irrelevant("trainer.resume", "/a/b.pt")


def test_settings_of_another_version(tmp_path: Path) -> None:
    """An option that one of them lacks was off there."""
    run(tmp_path / "a", "vlae", 4, 0, 1.0)
    run(tmp_path / "b", "vlae", 4, 1, 3.0, **{"trainer.later": False, "model.later": None})
    assert compare(tmp_path, TableSpec()).cells["VLAE", "T=4"].n == 2
    run(tmp_path / "c", "vlae", 4, 2, 3.0, **{"trainer.later": True})
    with pytest.raises(InputError, match=r"trainer.later is null in a/\S* and true in c/"):
        compare(tmp_path, TableSpec())


def test_equal_values_of_other_types(tmp_path: Path) -> None:
    run(tmp_path / "a", "vlae", 4, 0, 1.0, **{"data.validation": 140})
    settings_ = config(seed=1, **{"data.validation": 140.0, "model.inference.steps": 4.0})
    write_run(tmp_path / "b", settings_, record(settings_, 3.0))
    assert compare(tmp_path, TableSpec()).cells["VLAE", "T=4"].n == 2
    assert canonical([1.0, "a", None]) == canonical([1, "a", None]) != canonical([1, "a"])
    assert canonical(True) != canonical(1)


def test_other_differences_between_cells_are_told(tmp_path: Path) -> None:
    run(tmp_path, "vae", None, 0, 1.0, **{"trainer.epochs": 30, "estimator.name": "elbo_mc"})
    run(tmp_path, "vlae", 4, 0, 2.0, **{"record.environment.torch": "2.0", "model.latent_dim": 8})
    notes = compare(tmp_path, TableSpec()).notes
    assert "trainer.epochs differs between cells: 30 (VAE); 15 (VLAE T=4)" in notes
    assert "model.latent_dim differs between cells: 16 (VAE); 8 (VLAE T=4)" in notes
    assert "versions differ: torch 2.15.0 (VAE); 2.0 (VLAE T=4)" in notes
    assert not any("estimator" in note or "inference" in note for note in notes)


def test_what_is_mixed_allows_no_more_than_it_says(tmp_path: Path) -> None:
    run(tmp_path, "vae", None, 0, 1.0)
    changes = {"evaluation.images": 10, "record.protocol.evaluated_images": 10}
    run(tmp_path, "vlae", 4, 0, 2.0, **changes)
    run(tmp_path, "vlae", 4, 1, 4.0, **changes | {"evaluation.images": 11, "record.protocol.evaluated_images": 11})
    assert compare(tmp_path, TableSpec(mix=("evaluated_images",))).cells["VLAE", "T=4"].mean == 3.0  # the setting too
    assert compare(tmp_path, TableSpec(mix=("evaluation.images",))).cells["VLAE", "T=4"].mean == 3.0
    run(tmp_path, "vlae", 4, 2, 4.0, **changes | {"data.name": "mnist"})
    with pytest.raises(InputError, match="are not comparable: data is cifar10"):
        compare(tmp_path, TableSpec(mix=("evaluated_images",)))
    with pytest.raises(InputError, match="evaluated_images is 2000 in"):
        compare(tmp_path, TableSpec(mix=("data.binarize",), where=("data=cifar10",)))


def test_an_unknown_key_to_mix(tmp_path: Path) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0)
    with pytest.raises(InputError, match=r"--mix binarise: no run has this key. Did you mean binarize\?"):
        compare(tmp_path, TableSpec(mix=("binarise",)))
