"""A cell shows the mean over seeds of finished runs, and the states of the others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import filelock
import pytest
from support.sweeps.records import compare, config, job, paper, record, run, write_plan, write_run

from vaerun.errors import InputError
from vaerun.report import runs
from vaerun.report.cells import Cell
from vaerun.report.comparison import Comparison
from vaerun.report.table_spec import TableSpec


def cell(table: Comparison, row: str, column: str) -> Cell:
    return table.cells[row, column]


def test_mean_standard_deviation_and_standard_error(tmp_path: Path) -> None:
    for seed, value in enumerate((1.0, 2.0, 4.5)):
        run(tmp_path, "vlae", 4, seed, value)
    summary = cell(compare(tmp_path, TableSpec()), "VLAE", "T=4")
    assert summary.n == 3
    assert summary.mean == 2.5
    assert summary.sd == pytest.approx(math.sqrt((1.5**2 + 0.5**2 + 2.0**2) / 2))
    assert summary.se == pytest.approx(summary.sd / math.sqrt(3))
    assert summary.format(2) == "2.50 ± 1.80 (n=3)"


def test_one_seed_has_no_standard_deviation(tmp_path: Path) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0)
    table = compare(tmp_path, TableSpec())
    summary = cell(table, "VLAE", "T=4")
    assert (summary.sd, summary.se) == (None, None)
    assert summary.format(2) == "1.00 (n=1)"
    assert any("only one seed in VLAE T=4" in note for note in table.notes)


def test_rows_and_columns_as_in_the_paper(tmp_path: Path) -> None:
    paper(tmp_path, seeds=2)
    run(tmp_path, "vlae", 16, 0, 1.0)
    table = compare(tmp_path, TableSpec(published="vlae_cifar10"))
    assert table.rows == ["VAE", "SA-VAE", "VAE+HF", "VAE+IAF", "VLAE"]
    assert table.columns == ["-", "T=1", "T=2", "T=4", "T=8", "T=16"]  # as numbers, not as words
    assert table.empty == "-"
    assert {column for row, column in table.cells if row == "VAE"} == {"-"}
    assert cell(table, "VAE", "-").mean == pytest.approx(1809.9)


def test_without_published_numbers_rows_are_in_the_plans_order(tmp_path: Path) -> None:
    jobs = []
    for model in ("vlae", "sa_vae", "vae_hf"):
        settings = config(model)
        write_run(tmp_path / model, settings, record(settings, 1.0))
        jobs.append(job(model, settings))
    write_plan(tmp_path, jobs)
    assert compare(tmp_path, TableSpec()).rows == ["VLAE", "SA-VAE", "VAE+HF"]
    (tmp_path / "sweep.json").unlink()
    assert compare(tmp_path, TableSpec()).rows == ["SA-VAE", "VAE+HF", "VLAE"]


def states(root: Path, *names: str) -> list[dict[str, Any]]:
    """Runs of VLAE T=4, one per seed in the given states; `ok` ones have the value 10 + seed."""
    jobs = []
    for seed, state in enumerate(names):
        settings = config(seed=seed)
        jobs.append(job(f"run{seed}", settings))
        if state == "missing":
            continue
        if state == "damaged":
            write_run(root / f"run{seed}", settings, None)
            (root / f"run{seed}" / "result.json").write_text("{")
            continue
        value = 10.0 + seed if state == "ok" else 99.0  # of others, no number may be seen
        lines = (
            '{"step": 50, "epoch": 1}\n{"step": 86, "epoch": 2}\n{"step": 1'
            if state in ("running", "interrupted")
            else ""
        )
        write_run(root / f"run{seed}", settings, record(settings, value, state, error="Boom"), lines)
    write_plan(root, jobs)
    return jobs


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["failed"], "failed"),
        (["missing"], "missing"),
        (["interrupted"], "interrupted 43%"),
        (["running"], "stopped 43%"),  # nobody holds the folder
        (["damaged"], "unreadable"),
        (["ok", "failed"], "1 of 2: 10.00 (n=1); 1 failed"),
        (["ok", "ok", "failed"], "2 of 3: 10.50 ± 0.71; 1 failed"),
        (["missing", "ok", "missing", "ok"], "2 of 4: 12.00 ± 1.41; 2 missing"),
        (["running", "interrupted", "failed", "missing", "damaged", "failed"],
         "2 failed, 1 interrupted 43%, 1 stopped 43%, 1 unreadable, 1 missing"),
    ],
)  # fmt: skip
def test_states(tmp_path: Path, names: list[str], text: str) -> None:
    states(tmp_path, *names)
    table = compare(tmp_path, TableSpec())
    summary = cell(table, "VLAE", "T=4")
    assert summary.format(2) == text
    assert summary.n == names.count("ok")
    assert all(value < 90 for value in summary.values.values())


def test_a_running_job_is_one_whose_folder_is_held(tmp_path: Path) -> None:
    states(tmp_path, "running", "missing")
    (tmp_path / "run1").mkdir()
    locks = [filelock.FileLock(tmp_path / name / ".lock") for name in ("run0", "run1")]
    for lock in locks:
        lock.acquire()
    assert cell(compare(tmp_path, TableSpec()), "VLAE", "T=4").format(2) == "2 running 43%"
    for lock in locks:
        lock.release()
    assert cell(compare(tmp_path, TableSpec()), "VLAE", "T=4").format(2) == "1 stopped 43%, 1 missing"


def test_a_lock_that_is_a_link_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions of filelock truncate the file that it points to."""
    states(tmp_path, "running")
    (tmp_path / "run0" / ".lock").symlink_to(tmp_path / "victim")
    monkeypatch.setattr(runs, "is_locked", lambda folder: pytest.fail("tried"))
    assert cell(compare(tmp_path, TableSpec()), "VLAE", "T=4").format(2) == "stopped 43%"


def test_without_a_plan_progress_is_by_epochs(tmp_path: Path) -> None:
    states(tmp_path, "interrupted")
    (tmp_path / "sweep.json").unlink()
    assert cell(compare(tmp_path, TableSpec()), "VLAE", "T=4").format(2) == "interrupted 13%"  # 2 of 15


def test_those_that_gave_no_number_are_named_with_the_cause(tmp_path: Path) -> None:
    states(tmp_path, "ok", "failed", "missing")
    notes = compare(tmp_path, TableSpec()).notes
    assert "failed: VLAE T=4 seed 1 (run1): Boom" in notes
    assert "missing (planned, not started): VLAE T=4 seed 2 (run2)" in notes


def test_a_failure_before_the_record_began(tmp_path: Path) -> None:
    """A minimal result.json; the plan has the settings."""
    write_plan(tmp_path, [job("a", config())])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text('{"status": "failed", "metrics": {}, "protocol": {}, "error": "died"}')
    assert cell(compare(tmp_path, TableSpec()), "VLAE", "T=4").format(2) == "failed"


def test_a_finished_run_without_the_metric(tmp_path: Path) -> None:
    run(tmp_path, "vlae", 4, 0, None)
    run(tmp_path, "vlae", 4, 1, 1.0, **{"record.metrics.test/log_likelihood": float("nan")})
    table = compare(tmp_path, TableSpec())
    assert cell(table, "VLAE", "T=4").format(2) == "2 without the metric"
    assert "seeds: no run has finished" in table.notes


def test_the_same_run_twice_counts_once(tmp_path: Path) -> None:
    run(tmp_path / "one", "vlae", 4, 0, 1.0)
    run(tmp_path / "two", "vlae", 4, 0, 1.0)
    run(tmp_path / "two", "vlae", 4, 1, 3.0)
    table = compare(tmp_path, TableSpec())
    assert (cell(table, "VLAE", "T=4").n, cell(table, "VLAE", "T=4").mean) == (2, 2.0)
    assert "VLAE T=4: one/vlae_t4_0 and two/vlae_t4_0 are the same run: counted once" in table.notes


def test_the_furthest_of_two_runs_of_a_seed_counts(tmp_path: Path) -> None:
    run(tmp_path / "one", "vlae", 4, 0, None, "failed")
    run(tmp_path / "two", "vlae", 4, 0, 3.0)
    assert cell(compare(tmp_path, TableSpec()), "VLAE", "T=4").format(2) == "3.00 (n=1)"


def test_two_runs_of_a_seed_that_are_not_the_same(tmp_path: Path) -> None:
    run(tmp_path / "one", "vlae", 4, 0, 1.0)
    run(tmp_path / "two", "vlae", 4, 0, 2.0, **{"record.fingerprint": "other"})
    with pytest.raises(InputError, match=r"one/vlae_t4_0 and two/vlae_t4_0 \(VLAE T=4\).*--mix fingerprint"):
        compare(tmp_path, TableSpec())
    assert cell(compare(tmp_path, TableSpec(mix=("fingerprint",))), "VLAE", "T=4").mean == 1.5


def test_other_axes(tmp_path: Path) -> None:
    for epochs in (5, 15, 100):
        for seed in (0, 1):
            run(tmp_path / str(epochs), "vlae", 4, seed, epochs + seed, **{"trainer.epochs": epochs})
    table = compare(tmp_path, TableSpec(columns="trainer.epochs"))
    assert (table.rows, table.columns) == (["VLAE"], ["epochs=5", "epochs=15", "epochs=100"])
    assert cell(table, "VLAE", "epochs=15").mean == 15.5
    table = compare(tmp_path, TableSpec(rows="model,trainer.epochs", columns="none"))
    assert table.rows == ["VLAE, epochs=5", "VLAE, epochs=15", "VLAE, epochs=100"]
    assert table.columns == ["all"]
    assert cell(table, "VLAE, epochs=5", "all").mean == 5.5
    table = compare(tmp_path, TableSpec(rows="network", columns="trainer.epochs", metric="test/elbo"))
    assert cell(table, "mlp", "epochs=5").mean == 0.5
    assert compare(tmp_path, TableSpec(columns="trainer.epochs", where=("network=mlp",))).rows == ["VLAE"]


def test_large_and_small_numbers_are_short(tmp_path: Path) -> None:
    for rate in (1e-5, 0.001, 100000.0, 1e30):
        run(tmp_path / str(rate), "vlae", 4, 0, 1.0, **{"trainer.learning_rate": rate})
    question = TableSpec(rows="trainer.learning_rate", columns="none")
    assert compare(tmp_path, question).rows == ["1e-05", "0.001", "100000", "1e+30"]
    for word in ("1e30", "1e+30", "1.0e+30"):
        assert (
            compare(tmp_path, TableSpec(where=(f"trainer.learning_rate={word}",))).runs()[0].name == "1e+30/vlae_t4_0"
        )
    assert compare(tmp_path, TableSpec(where=("trainer.learning_rate=1e-3",))).runs()[0].name == "0.001/vlae_t4_0"


def test_only_those_that_are_asked_for(tmp_path: Path) -> None:
    paper(tmp_path, seeds=2)
    table = compare(tmp_path, TableSpec(where=("model=vlae", "model=vae", "seed=1")))
    assert table.rows == ["VAE", "VLAE"]
    assert cell(table, "VAE", "-").values == {"1": pytest.approx(1810.1)}
    table = compare(tmp_path, TableSpec(where=("model=vlae", "model.inference.steps=4"), published="vlae_cifar10"))
    assert list(table.cells) == [("VLAE", "T=4")]  # published numbers neither
    with pytest.raises(InputError, match=r"available: .*vae_hf"):
        compare(tmp_path, TableSpec(where=("model=vl",)))
    with pytest.raises(InputError, match=r"trainer.epoch: no run has this key. Did you mean trainer.epochs\?"):
        compare(tmp_path, TableSpec(where=("trainer.epoch=3",)))
    with pytest.raises(InputError, match="write KEY=VALUE"):
        compare(tmp_path, TableSpec(where=("model",)))


def test_adversarial_models_are_compared_by_their_distance(tmp_path: Path) -> None:
    for model in ("gan", "dcgan"):
        entries = {
            "record.metrics.test/classifier_frechet_distance": 0.5, "record.protocol.family": "adversarial",
            "record.protocol.likelihood": None, "model.family": "adversarial",
            "record.protocol.generated": {"samples": 1000, "neighbours": 5},
        }  # fmt: skip
        run(tmp_path, model, None, 0, None, **entries)
    table = compare(tmp_path, TableSpec())
    assert table.metric == "test/classifier_frechet_distance"
    assert {c.format(4) for c in table.cells.values()} == {"0.5000 (n=1)"}
    assert "1000 generated images" in table.caption
    assert "lower is better" in table.caption


def test_a_configuration_without_sweeps(tmp_path: Path) -> None:
    settings = config()
    del settings["sweep"]
    write_run(tmp_path / "old", settings, record(settings, 1.0))
    run(tmp_path, "vlae", 4, 1, 3.0)
    assert cell(compare(tmp_path, TableSpec()), "VLAE", "T=4").mean == 2.0


def test_what_the_configuration_says_of_the_table(tmp_path: Path) -> None:
    for epochs in (5, 15):
        changes = {"trainer.epochs": epochs, "sweep.table.columns": "trainer.epochs", "sweep.table.metric": "test/elbo"}
        run(tmp_path / str(epochs), "vlae", 4, 0, epochs, **changes)
    table = compare(tmp_path, TableSpec())
    assert (table.columns, table.metric, cell(table, "VLAE", "epochs=5").mean) == (
        ["epochs=5", "epochs=15"],
        "test/elbo",
        0,
    )
    run(tmp_path, "vae", None, 0, 1.0, **{"sweep.table.columns": "seed"})
    with pytest.raises(InputError, match=r"disagree on sweep.table.columns \(.*\): choose by --columns"):
        compare(tmp_path, TableSpec())
    assert compare(tmp_path, TableSpec(columns="none", rows="model,trainer.epochs", metric="test/elbo")).columns == [
        "all"
    ]


def test_what_was_planned_last_says_what_the_table_is(tmp_path: Path) -> None:
    """A finished run keeps its configuration; the sweep's command may request another table."""
    settings = config(**{"sweep.table.metric": "test/elbo"})
    write_run(tmp_path / "a", config(), record(config(), 7.0))
    write_plan(tmp_path, [job("a", settings)])
    assert compare(tmp_path, TableSpec()).metric == "test/elbo"


def test_unknown_keys_and_metrics_are_refused(tmp_path: Path) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0)
    with pytest.raises(
        InputError, match=r"no run has the setting model.inference.step. Did you mean model.inference.steps\?"
    ):
        compare(tmp_path, TableSpec(columns="model.inference.step"))
    with pytest.raises(
        InputError, match=r"test/log_likelyhood. Did you mean test/log_likelihood\? Available: test/elbo,"
    ):
        compare(tmp_path, TableSpec(metric="test/log_likelyhood"))
    with pytest.raises(InputError, match="no run below"):
        compare(tmp_path / "vlae_t4_0" / ".hydra", TableSpec())
    with pytest.raises(InputError, match="is not a folder"):
        compare(tmp_path / "nowhere", TableSpec())
