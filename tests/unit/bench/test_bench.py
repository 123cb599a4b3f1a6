"""Arithmetic of the benchmarks: variants agree, operations are counted correctly, ratios within a round; bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vaerun.bench import evaluation, vae, vlae
from vaerun.bench.case import BenchSettings, Case, Work
from vaerun.bench.machine import Rates
from vaerun.bench.measure import Measurement, measure, to_markdown
from vaerun.bench.memory import peak_memory
from vaerun.bench.registry import BENCHMARKS
from vaerun.bench.scaling import exponent
from vaerun.bench.vlae import QUICK, Size
from vaerun.cli import bench

pytestmark = pytest.mark.usefixtures("single_precision")
CPU = torch.device("cpu")
QUICK_RUN = BenchSettings(CPU, quick=True)
MIDDLE = Size((40, 30), 8, (1, 8, 8), 6)


def operations(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("size", [replace(QUICK, steps=t) for t in (0, 1, 2)] + [replace(QUICK, hidden=())])
def test_both_forms_of_vlae_have_one_loss_and_gradient(likelihood, size):
    errors = vlae.loss_differences(replace(size, likelihood=likelihood), CPU)
    assert len(errors) == 6
    for name, value in errors.items():
        assert value < (1e-9 if "float64" in name else 1e-4), name


def test_both_evaluations_give_one_value():
    ours, textbook = (call() for call in evaluation.make_calls(QUICK, 700, CPU).values())
    torch.testing.assert_close(ours, textbook, rtol=0, atol=1e-3)


def test_operations_of_a_vae_step():
    size = ((1, 8, 8), [40, 30], 8, 6, CPU)
    counted = vae.step_work(64, [40, 30], 8, 6).flops
    assert operations(vae.vaerun_step(*size)) == counted
    assert operations(vae.textbook_step(*size)) == counted


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_operations_of_a_vlae_step(likelihood, steps):
    """The counted minimum is what is computed or, where symmetry is not exploited, somewhat less."""
    size = replace(MIDDLE, likelihood=likelihood, steps=steps)
    done = operations(vlae.make_step(vlae.vaerun_loss, size, CPU))
    assert 0.65 < vlae.step_work(size).flops / done < 1.02


def test_the_explicit_form_does_more():
    for likelihood in ("gaussian", "bernoulli"):
        size = replace(MIDDLE, likelihood=likelihood)
        ours, textbook = (operations(vlae.make_step(loss, size, CPU)) for loss in vlae.LOSSES.values())
        assert textbook > 1.3 * ours


def test_floor():
    rates = Rates(QUICK_RUN, 2, 3)
    rates.seconds = {"product": [1.0, 9.0, 2.0], "copy": [4.0], "factor": [0.5], "solve": [0.25]}
    rates.amounts |= {"product": 100.0, "copy": 8.0}
    # 2 s for 100 operations, 4 s for 8 bytes, 0.5 s per factorisation and 0.25 s per solve.
    assert rates.floor(Work(flops=50, bytes=2, factorisations=3, solves=2)) == pytest.approx(1 + 1 + 1.5 + 0.5)


def test_exponent():
    assert exponent([1, 2, 4, 8], [3 * v**1.7 for v in (1, 2, 4, 8)]) == pytest.approx(1.7)


def test_forms_are_called_in_turn():
    order = []
    variants = {name: lambda name=name: lambda: order.append(name) for name in "ab"}
    measurement = measure("", Case("c", "call", variants, memory=False), QUICK_RUN, 3)
    assert order == ["a", "a", "b", "b", *"ab" * 3]
    assert [len(times) for times in measurement.seconds.values()] == [3, 3]


def test_table_and_ratios():
    case = Case("what", "call", {}, items=6, memory=True)
    seconds = {"own": [1.0, 2.0, 4.0], "other": [3.0, 4.0, 20.0]}
    measurement = Measurement(
        case,
        seconds,
        floor=0.5,
        rates={"product": 2e9, "copy": 1e9},
        memory={"own": 2**20, "other": None},
        notes=["a note"],
    )
    assert measurement.ratios("other") == [3, 2, 5]
    text = to_markdown(measurement)
    assert "| own | 2.000 s (1.000 s - 4.000 s) |  | 25% | 3 | 1 MiB |" in text
    assert "| other | 4.000 s (3.000 s - 20.000 s) | 3.00 (2.00 - 5.00) | 12% | 2 | not available |" in text
    assert "- floor 500 ms, products 2 GFLOP/s, copies 1.0 GB/s" in text
    assert text.endswith("- a note")
    assert measurement.to_dict()["seconds"] == seconds


@pytest.mark.slow
def test_peak_memory_is_that_of_the_calls():
    """Of a step dominated by its images: B D numbers, a few times."""
    case = next(case for case in BENCHMARKS["vae"](BenchSettings(CPU)) if "B=512" in case.name)
    for variant in case.variants:
        used = peak_memory("vae", case.name, variant, BenchSettings(CPU))
        assert used is not None
        assert 4 * 512 * 3072 * 4 < used < 400 * 2**20


@pytest.mark.parametrize(
    "name", ["vae", *(pytest.param(n, marks=pytest.mark.slow) for n in ("evaluation", "vlae_bernoulli"))]
)
def test_command(name, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        code = bench.main([name, "--quick", "--rounds", "5", "--threads", "1", "--json", str(tmp_path / "out.json")])
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert code == 0
    assert "processor: " in out
    assert "torch: " in out
    cases = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert len(cases) == (2 if name == "evaluation" else 1)
    assert cases[0]["floor_seconds"] > 0
    for case in cases:
        assert f"## {case['case']}" in out
        assert all(len(times) == 5 for times in case["seconds"].values())
        assert set(case["peak_bytes"]) == set(case["seconds"])


def test_names_and_list(capsys):
    assert list(BENCHMARKS) == list(bench.NAMES)
    assert bench.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(bench.NAMES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vlea"], "unknown benchmark vlea. Did you mean vlae?"),
        (["vae", "--rounds", "4"], "--rounds must be at least 5, got 4"),
        (["vae", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["vae", "--device", "gpu"], "--device=gpu: choose cpu, cuda or cuda:N"),
        (["vae", "--device", "meta"], "--device=meta: choose cpu, cuda or cuda:N"),
        (["vae", "--device", "cuda:99"], "--device=cuda:99: this machine has"),
        (["vae", "--json", "/nowhere/out.json"], "--json: no such folder: /nowhere"),
        (["vae", "--json", "/"], "--json / is a folder: name a file"),
    ],
)
def test_bad_input(words, message, capsys):
    try:
        code = bench.main(words)
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_whole_commands_are_timed(capsys):
    assert bench.main(["startup", "prepare", "--quick", "--rounds", "5"]) == 0
    out = capsys.readouterr().out
    for title in ("start to the first logged step", "vaerun-data digits into an empty cache"):
        assert title in out
    assert out.count("| vaerun | ") == 2
