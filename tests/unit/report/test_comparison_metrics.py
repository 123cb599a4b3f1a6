"""Log-likelihoods as published, by importance sampling with q, and by adaptive importance sampling, side by side."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from support.runs.commands import tensorboard
from support.sweeps.records import per_image, run, write_plan

from vaerun.cli.table import main
from vaerun.errors import InputError
from vaerun.report import captions, chart, write_all
from vaerun.report.chart import to_png
from vaerun.report.comparison import Comparison, compare
from vaerun.report.formats import table_rows, to_csv, to_latex, to_markdown
from vaerun.report.protocol import protocol_of
from vaerun.report.runs import read_runs
from vaerun.report.significance import paired_test
from vaerun.report.table_spec import TableSpec

BOTH = "test/log_likelihood,test/amis"
ALL = [*BOTH.split(","), "test/gap_posterior"]


def adaptive(amis: float, gap: float = 5.0, images: int = 2000, unreliable: float = 0.0, **own: Any) -> dict[str, Any]:
    """Entries of result.json, and settings, of a run with evaluation.amis."""
    protocol = {"samples": 2000, "starts": 8, "images": images, "simulated": 50, "fallback": "ais"}
    return {
        "evaluation.amis": {"enabled": None, "samples": 2000, "images": images},
        "record.metrics.test/pareto_k_unreliable": 0.9,
        "record.metrics.test/amis": amis,
        "record.metrics.test/amis_pareto_k_unreliable": unreliable,
        "record.metrics.test/gap_posterior": gap,
        "record.protocol.amis": protocol,
        **own,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """VLAE leads by 40 nats as published, by 10 by AMIS: q of the VAE misses 34 of them, that of VLAE 4."""
    for seed in range(3):
        shift = 2.0 * (seed - 1)
        run(tmp_path, "vlae", 4, seed, 1840 + shift, **adaptive(1844 + shift / 2, 9 + seed, unreliable=0.01))
        run(tmp_path, "vae", None, seed, 1800 + shift, **adaptive(1834 + shift, 39 + seed, unreliable=0.03))
    return tmp_path


def test_both_numbers_by_default(folder: Path) -> None:
    first, second, gap = compare(folder, TableSpec())
    assert [table.metric for table in (first, second, gap)] == ALL
    assert [table.rows for table in (first, second, gap)] == [["VAE", "VLAE"]] * 3
    for table, vlae, vae in ((first, (1840, 2), (1800, 2)), (second, (1844, 1), (1834, 2)), (gap, (10, 1), (40, 1))):
        for cell, (mean, sd) in ((table.cells["VLAE", "T=4"], vlae), (table.cells["VAE", "-"], vae)):
            assert (cell.mean, cell.sd) == (pytest.approx(mean), pytest.approx(sd))
            assert cell.se == pytest.approx(sd / math.sqrt(3))
    assert "as published: importance sampling with q, K=5000" in first.caption
    assert "compares with published numbers, whereas test/amis compares models" in first.caption
    assert "by adaptive importance sampling, K=2000" in second.caption
    assert "does not depend on q; this number compares models; the first 2000 test images" in second.caption
    assert "mean KL(q ‖ posterior)" in gap.caption
    assert "compares inference, not models" in gap.caption
    assert "lower is better" in gap.caption


def test_the_share_of_unreliable_images_stands_next_to_each_number(folder: Path) -> None:
    first, second, gap = compare(folder, TableSpec())
    method = "Pareto k-hat above 0.7 under importance sampling with q"
    assert first.notes[0].startswith(f"{method} for 90.0% of the images, mean over cells (at most 90.0%, VAE): ")
    method = "Pareto k-hat above 0.7 under adaptive importance sampling"
    assert second.notes[0].startswith(f"{method} for 2.0% of the images, mean over cells (at most 3.0%, VAE): ")
    assert not any("k-hat" in note for note in gap.notes)


def test_what_importance_sampling_with_q_misses(folder: Path) -> None:
    text = "importance sampling with q is lower on the same images"
    assert not any(text in note for table in compare(folder, TableSpec()) for note in table.notes)
    for seed in range(3):
        run(folder, "sa_vae", 4, seed, 1.0, **adaptive(2.0, **{"record.metrics.test/amis_minus_is": 1.0 + seed}))
        run(folder, "vae_hf", 4, seed, 1.0, **adaptive(2.0, **{"record.metrics.test/amis_minus_is": 30.0 + seed}))
    span = "2.00 (SA-VAE T=4) to 31.00 (VAE+HF T=4) nats per image (test/amis_minus_is)"
    first, second, gap = compare(folder, TableSpec())
    assert second.notes[1] == f"{text}, by {span}"
    assert not any(text in note for table in (first, gap) for note in table.notes)


def test_no_unreliable_image(tmp_path: Path) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0, **adaptive(2.0))
    run(tmp_path, "vae", None, 0, 1.0, **adaptive(2.0, **{"record.metrics.test/amis_pareto_k_unreliable": None}))
    notes = compare(tmp_path, TableSpec())[1].notes
    method = "under adaptive importance sampling"
    assert notes[0] == f"Pareto k-hat is at most 0.7 {method} for every image; not recorded in 1 cells"


def test_runs_of_an_older_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0)
    (table,) = compare(tmp_path, TableSpec())
    why = "(an older version, or evaluation.amis=false)"
    assert table.metric == "test/log_likelihood"
    assert table.notes[0] == f"no run has test/amis, which compares models {why}"
    for metric in ("test/amis", "test/gap_posterior"):
        assert main([str(tmp_path), "--metric", metric]) == 2
        error = capsys.readouterr().err
        assert f"no finished run has the metric {metric}: " in error
        assert "vaerun-eval run=DIR measures it" in error
        assert len(error.splitlines()) == 1


def test_only_some_runs_have_both(folder: Path) -> None:
    """Seeds of an older version join their cell in the first table, and are counted in the second."""
    run(folder, "vlae", 4, 3, 1850.0)
    run(folder, "vlae", 4, 4, None, "failed")
    first, second, _ = compare(folder, TableSpec())
    old, new = first.cells["VLAE", "T=4"], second.cells["VLAE", "T=4"]
    assert (old.n, old.mean) == (4, pytest.approx((1838 + 1840 + 1842 + 1850) / 4))
    assert (new.n, new.mean) == (3, pytest.approx(1844))
    assert new.format(2) == "3 of 5: 1844.00 ± 1.00; 1 failed, 1 without the metric"
    counted = "1 of 7 finished runs have no test/amis (an older version, or evaluation.amis=false): VLAE T=4 seed 3"
    assert any(note.startswith(counted) for note in second.notes)
    assert not any("finished runs have no" in note for note in first.notes)
    assert len(paired_test(new, second.cells["VAE", "-"]).seeds) == 3


def test_another_number_of_images(tmp_path: Path) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0, **adaptive(2.0, images=1000))
    first, second, gap = compare(tmp_path, TableSpec())
    note = "test/amis averages over 1000 images, test/log_likelihood over 2000"
    assert second.notes[0].startswith(note)
    assert "the first 1000 test images" in second.caption
    assert "2000 test images" in first.caption
    assert not any(n.startswith("test/") for table in (first, gap) for n in table.notes)


def test_published_numbers_belong_to_the_published_protocol(folder: Path) -> None:
    first, second, gap = compare(folder, TableSpec(published="vlae_cifar10"))
    assert first.cells["VLAE", "T=4"].published == 2387
    assert first.cells["VLAE", "T=4"].difference == pytest.approx(1840 - 2387)
    assert any(row[0] == "SA-VAE" for row in table_rows(first))
    for table in (second, gap):
        assert table.published is None
        assert [row[0] for row in table_rows(table)[1:]] == ["VAE", "VLAE"]
        assert table.columns == ["-", "T=4"]
        assert not any("published" in note for note in table.notes)
    with pytest.raises(InputError, match="its metric is test/log_likelihood, here test/amis"):
        compare(folder, TableSpec(metric="test/amis", published="vlae_cifar10"))


def metrics(tables: list[Comparison]) -> list[str]:
    return [table.metric for table in tables]


def test_which_metrics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def columns(*words: str) -> list[str]:
        assert main([str(folder), "--columns", "none", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.split("|")[2].strip() for line in lines if line.startswith("| model") and "training" not in line]

    assert columns() == ALL
    assert columns("--metric", "test/amis") == ["test/amis"]
    assert columns("--metric", "test/amis,test/log_likelihood") == ["test/amis", "test/log_likelihood"]
    assert columns("--metric", "test/amis", "--metric", "test/elbo, test/amis") == ["test/amis", "test/elbo"]
    with pytest.raises(InputError, match=r"test/elbow\. Did you mean test/elbo\?"):
        compare(folder, TableSpec(metric="test/amis,test/elbow"))


def test_which_metrics_by_the_configuration(tmp_path: Path) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0, **adaptive(2.0), **{"sweep.table.metric": BOTH})
    assert metrics(compare(tmp_path, TableSpec())) == BOTH.split(",")
    assert metrics(compare(tmp_path, TableSpec(metric="test/elbo"))) == ["test/elbo"]


def test_metrics_of_another_protocol(folder: Path) -> None:
    """Those shown by default are left out, so that the first table is not lost; those requested are an error."""
    other = adaptive(1.0, **{"record.protocol.amis.samples": 10, "record.protocol.amis.simulated": 7})
    run(folder, "vae_hf", 4, 0, 1810.0, **other)
    (table,) = compare(folder, TableSpec())
    assert table.metric == "test/log_likelihood"
    text = next(note for note in table.notes if note.startswith("test/amis omitted: these runs are not comparable: "))
    assert "amis.samples is 10 in vae_hf_t4_0 and 2000 in vae_tNone_0" in text
    assert "simulated" not in text
    with pytest.raises(InputError, match=r"amis.samples is .*--mix amis.samples"):
        compare(folder, TableSpec(metric=BOTH))
    tables = compare(folder, TableSpec(metric=BOTH, mix=("amis.samples",)))
    assert [t.mixed for t in tables] == [False, True]
    assert tables[1].cells["VAE+HF", "T=4"].mean == 1.0


def test_the_protocol_of_each(folder: Path) -> None:
    (summary, *_), _ = read_runs(folder)
    published, own = (protocol_of(summary, metric) for metric in BOTH.split(","))
    assert published["importance_samples"] == 5000
    assert not any(key.startswith("amis.") for key in published)
    assert (own["amis.samples"], own["amis.images"]) == (2000, 2000)
    assert not {"importance_samples", "evaluated_images", "amis.simulated"} & own.keys()


def test_markdown(folder: Path) -> None:
    text = to_markdown(compare(folder, TableSpec()))
    blocks = text.split("\n\n")
    heads = [block.partition(":")[0] for block in blocks if block.startswith("test/")]
    assert heads == ALL
    assert "| VLAE      |                      | 1844.00 ± 1.00 (n=3) |" in text
    assert text.count("seeds: 3 in every finished cell (0, 1, 2)") == 1
    assert blocks[blocks.index("For all 3 tables:") + 1] == "- seeds: 3 in every finished cell (0, 1, 2)"
    costs = blocks[-1].splitlines()
    assert costs[0].count("mean test/") == 3
    assert [cell.strip() for cell in costs[3].split("|")][3:6] == ["1840.00", "1844.00", "10.00"]


def test_csv(folder: Path) -> None:
    both, one = (
        list(csv.DictReader(io.StringIO(to_csv(compare(folder, TableSpec(metric=metric))))))
        for metric in (BOTH, "test/log_likelihood")
    )
    assert both[: len(one)] == one
    actual = {(line["metric"], line["row"]): line for line in both}
    assert len(actual) == len(both) == 4
    line = actual["test/amis", "VLAE"]
    assert (float(line["mean"]), float(line["sd"])) == (pytest.approx(1844), pytest.approx(1))
    assert (line["K"], line["images"], line["pareto_k_unreliable"]) == ("2000", "2000", "0.01")
    assert line["meaning"] == "by adaptive importance sampling (does not depend on q)"
    line = actual["test/log_likelihood", "VLAE"]
    assert (line["K"], line["pareto_k_unreliable"]) == ("5000", "0.9")
    assert line["meaning"] == "as published: importance sampling with q, K=5000"


def test_latex(folder: Path) -> None:
    text = to_latex(compare(folder, TableSpec()))
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 4
    assert text.count("{\\footnotesize") == 4
    assert text.index("VLAE &  & 1840.00 $\\pm$ 2.00 (n=3)") < text.index("VLAE &  & 1844.00 $\\pm$ 1.00 (n=3)")
    assert "90.0\\% of the images" in text
    assert "KL(q $\\|$ posterior)" in text
    assert text.isascii()


def test_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of panels per metric; estimates of log p(x) of the same images to the same scale."""
    monkeypatch.setattr(chart, "png_bytes", lambda figure: figure)
    tables = compare(folder, TableSpec(published="vlae_cifar10"))
    figure: Any = to_png(tables)
    bars, times = figure.axes[::2], figure.axes[1::2]
    assert [axes.get_title() for axes in bars] == [
        "as published: importance sampling with q, K=5000",
        "by adaptive importance sampling (does not depend on q)",
        "KL(q ‖ posterior): compares inference, not models",
    ]
    assert [axes.get_title().split(" ")[0] for axes in times] == ALL
    assert bars[0].get_ylim() == bars[1].get_ylim() != bars[2].get_ylim()
    heights = [{round(patch.get_y() + patch.get_height(), 6) for patch in axes.patches} for axes in bars]
    assert [1840.0 in heights[0], 1844.0 in heights[1], 10.0 in heights[2]] == [True] * 3
    colours = [axes.containers[0].patches[0].get_facecolor() for axes in bars]
    assert colours[0] == colours[1] == colours[2]
    caption = " ".join(figure.get_supxlabel().split("\n"))
    for words in (
        "whereas test/amis compares models", "this number compares models", "importance sampling with q for 90.0%",
        "under adaptive importance sampling for 2.0%", "published numbers outside the axis",
    ):  # fmt: skip
        assert words in caption
    assert caption.count("published numbers outside the axis") == 1


def test_other_images_are_not_to_the_same_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chart, "png_bytes", lambda figure: figure)
    run(tmp_path, "vlae", 4, 0, 1840.0, **adaptive(1900.0, images=1000))
    figure: Any = to_png(compare(tmp_path, TableSpec(metric=BOTH)))
    assert figure.axes[0].get_ylim() != figure.axes[2].get_ylim()


def test_at_the_end_of_a_sweep(folder: Path) -> None:
    write_plan(folder, [])
    text = write_all(folder)
    assert (folder / "table.md").read_text() == f"{text}\n"
    for name in ("csv", "tex"):
        assert "1844.00" in (folder / f"table.{name}").read_text()
    events = tensorboard(folder / "table")
    for metric, value in zip(ALL, (1840, 1844, 10), strict=True):
        assert [(e.step, e.value) for e in events.Scalars(f"table/{metric}/VLAE")] == [(4, pytest.approx(value))]
    shown = events.Tensors("table/text_summary")[0].tensor_proto.string_val[0].decode()
    assert shown == text
    assert "this number compares models" in shown


def test_paired(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--paired"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    start = next(i for i, block in enumerate(blocks) if block.startswith("Paired by seed"))
    assert [block.rstrip(":") for block in blocks[start + 1 : start + 7 : 2]] == ALL
    second = compare(folder, TableSpec())[1]
    result = paired_test(second.cells["VLAE", "T=4"], second.cells["VAE", "-"])
    assert result.mean == pytest.approx(10)  # of 11, 10, 9: standard deviation 1
    assert result.se == pytest.approx(1 / math.sqrt(3))
    assert result.p == pytest.approx(2 * stats.t.sf(10 * math.sqrt(3), 2))


@pytest.mark.parametrize(("metric", "name"), [("test/amis", "amis"), ("test/gap_posterior", "gap_posterior")])
def test_paired_over_the_images_that_both_have(tmp_path: Path, metric: str, name: str) -> None:
    values = {"vlae": [1.0, 5.0, 9.0], "vae": [0.0, 3.0, 6.0, 100.0, 91.0]}  # differences 1, 2, 3: sd 1
    for model, numbers in values.items():
        mean = sum(numbers) / len(numbers)
        per_image(run(tmp_path, model, 4, 0, 7.0, **adaptive(mean, mean, images=len(numbers))), numbers, name)
    (table,) = compare(tmp_path, TableSpec(metric=metric, mix=("amis.images",)))
    assert table.mixed
    result = paired_test(table.cells["VLAE", "T=4"], table.cells["VAE", "T=4"])
    mean, error, count = result.images["0"]
    assert (mean, count) == (2.0, 3)
    assert isinstance(error, float)
    assert error == pytest.approx(1 / math.sqrt(3))
    with pytest.raises(InputError, match=r"amis.images is .*--where evaluation.amis.images=VALUE"):
        compare(tmp_path, TableSpec(metric=metric))


def test_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "vlae", 4, 3, 1850.0)
    assert main([str(folder), "--list", "--format", "csv"]) == 0
    rows = {row["folder"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    actual = rows["vlae_t4_1"]
    assert [actual[k] for k in ("test/amis", "images of amis", "test/gap_posterior")] == ["1844.0", "2000", "10"]
    assert [rows["vlae_t4_3"][k] for k in ("status", "test/amis", "images of amis")] == ["ok", "", ""]
    assert main([str(folder), "--list"]) == 0
    assert "| 1844.00 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "unit", "direction"),
    [
        ("test/amis", "nats per image", "higher is better"),
        ("test/gap_posterior", "nats per image", "lower is better"),
        ("test/amis_gap", "nats per image", "lower is better"),
        ("test/amis_upper", "nats per image", ""),
        ("test/amis_bits_per_dimension", "bits per dimension", "lower is better"),
        ("test/amis_ess", "", ""),
        ("test/amis_pareto_k_unreliable", "", ""),
        ("test/amis_starts_disagree", "", ""),
        ("test/amis_fallback", "", ""),
        ("test/amis_se", "nats per image", ""),
        ("test/gap_elbo_optimal_from_mode", "nats per image", "higher is better"),
        ("test/gap_from_mode", "", ""),
    ],
)
def test_units_and_directions(folder: Path, metric: str, unit: str, direction: str) -> None:
    runs, _ = read_runs(folder)
    assert (captions.unit(metric, runs), captions.direction(metric)) == (unit, direction)
