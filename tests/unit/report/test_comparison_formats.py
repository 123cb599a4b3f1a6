"""Every format has the same numbers, and untrusted names cannot escape their cell."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs.commands import tensorboard
from support.sweeps.records import compare, config, job, paper, record, run, write_plan, write_run

from vaerun.cli.table import main
from vaerun.errors import InputError
from vaerun.report import write_all
from vaerun.report.chart import to_png
from vaerun.report.comparison import Comparison
from vaerun.report.formats import to_csv, to_latex, to_markdown
from vaerun.report.table_spec import TableSpec
from vaerun.report.tensorboard import scalars
from vaerun.report.text import escape_csv, escape_markdown, escape_tex


@pytest.fixture
def table(tmp_path: Path) -> Comparison:
    paper(tmp_path, seeds=2)
    run(tmp_path, "vlae", 4, 2, None, "failed")
    return compare(tmp_path, TableSpec(published="vlae_cifar10"))


def test_markdown(table: Comparison) -> None:
    lines = to_markdown([table]).splitlines()
    caption = lines[0]
    for word in ("test/log_likelihood", "K=5000", "2000 test images of cifar10", "as stored pixels", "nats per image",
                 "gaussian likelihood", "higher is better", "sample standard deviation over n seeds"):  # fmt: skip
        assert word in caption
    grid = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert grid[0] == ["model / T", "-", "T=1", "T=2", "T=4", "T=8"]
    rows = {row[0]: row[1:] for row in grid[2:16]}
    assert rows["VAE"] == ["1809.90 ± 0.28 (n=2)", "", "", "", ""]
    assert rows["VLAE"][3] == "2 of 3: 1845.80 ± 0.28; 1 failed"
    cost = next(row for row in grid if row[:2] == ["SA-VAE", "T=8"])
    assert cost == ["SA-VAE", "T=8", "1835.46", "2", "116.0", "11.00", "4.0", "cpu some CPU, 1 threads"]


def test_times_that_do_not_compare(tmp_path: Path) -> None:
    run(tmp_path, "vae", None, 0, 1.0, **{"record.timing.train_seconds": 10.0})
    run(tmp_path, "vae", None, 1, 1.0, **{"record.timing.train_seconds": 20.0, "sweep.jobs": 2})
    same = to_markdown([compare(tmp_path, TableSpec())])
    assert "| 15.0 " in same
    assert "times are not comparable" not in same
    assert "times include the load of concurrent jobs (sweep.jobs=2)" in same
    run(tmp_path, "vlae", 4, 0, 1.0, **{"record.environment.threads": 8})
    text = to_markdown([compare(tmp_path, TableSpec())])
    assert "hardware or threads differ: cpu some CPU, 1 threads (VAE); cpu some CPU, 8 threads (VLAE T=4)" in text
    devices = {"record.environment.device_name": "a GPU"}
    for seed in (0, 1):
        run(tmp_path / "gpu", "vlae", 4, seed, 1.0, **devices | {"record.environment.device": f"cuda:{seed}"})
    assert "not comparable" not in to_markdown([compare(tmp_path / "gpu", TableSpec())])


def test_csv(table: Comparison) -> None:
    rows = {(row["row"], row["column"]): row for row in csv.DictReader(io.StringIO(to_csv([table])))}
    assert len(rows) == 17
    actual = rows["VLAE", "4"]
    assert float(actual["mean"]) == pytest.approx(1845.8)
    assert float(actual["sd"]) == pytest.approx(0.4 / np.sqrt(2))
    assert float(actual["se"]) == pytest.approx(0.2)
    assert float(actual["difference"]) == pytest.approx(1845.8 - 2387)
    assert (actual["seeds"], actual["n"], actual["runs"], actual["failed"], actual["ok"]) == ("0 1", "2", "3", "1", "2")
    assert (actual["metric"], actual["K"], actual["images"], actual["split"]) == (
        "test/log_likelihood",
        "5000",
        "2000",
        "test",
    )
    assert (actual["unit"], actual["train_seconds"], actual["mixed"]) == ("nats per image", "68.0", "false")
    assert rows["VAE", ""]["published"] == "2364.0"


def test_latex(table: Comparison) -> None:
    text = to_latex([table])
    body = text[text.index("\\hline") : text.index("\\end{tabular}")].splitlines()
    assert text.startswith("\\begin{tabular}{lrrrrr}\n\\hline\nmodel / T & - & T=1 & T=2 & T=4 & T=8 \\\\\n\\hline\n")
    assert all(line.count("&") == 5 and line.endswith("\\\\") for line in body if not line.startswith("\\hline"))
    assert "VAE & 1809.90 $\\pm$ 0.28 (n=2) &  &  &  &  \\\\" in body
    assert "\\usepackage" not in text
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 2
    assert text.isascii()


HOSTILE = [
    "a|b", "=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)", "<script>x</script>", "[x](javascript:y)", "`z`",
    "\\input{/etc/passwd}", "$x^2$ & 50% #1 _a_ {b} ~", "\x1b[31mred\x07", "two\nlines\r\n| 1 | 2 |", "\u202eback",
    "[5]", "*", "é漢",
]  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    for number, name in enumerate(HOSTILE):
        changes = {"model.name": name, "model.inference.steps": name, "seed": name}
        settings = config(**changes)
        entries = {"error": name, "environment.device_name": name, "protocol.split": HOSTILE[0]}
        status = "failed" if number % 3 == 2 else "ok"
        write_run(tmp_path / f"run{number}", settings, record(settings, float(number), status, **entries))
    folder = tmp_path / "=|\x1b[31m\n\\x"
    write_run(folder, config("vae"), record(config("vae"), 1.0, **{"protocol.split": HOSTILE[0]}))
    return tmp_path


def test_strangers_names_in_all_formats(hostile: Path) -> None:
    table = compare(hostile, TableSpec())
    lines = to_markdown([table]).splitlines()
    assert all(line.isprintable() for line in lines)
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    first = widths.index(8 + 1)  # of the table of times
    assert set(widths[:first]) == {len(table.columns) + 2}
    assert set(widths[first:]) == {9}
    assert "<script" not in "\n".join(lines)
    assert "](" not in "\n".join(lines)
    for row in csv.reader(io.StringIO(to_csv([table]))):
        for cell in row:
            assert cell[:1] not in tuple("=+-@\t\r") or re.fullmatch(r"-?[\d.]+", cell), cell
    text = to_latex([table])
    assert text.isascii()
    assert "\\input" not in text
    assert all(
        len(re.findall(r"(?<!\\)&", line)) == len(table.columns) for line in text.split("\\hline")[2].splitlines()[1:]
    )
    for letter in "%#_":
        assert not re.search(rf"(?<!\\){letter}", text)
    assert to_png([table])[:4] == b"\x89PNG"


def test_escapes() -> None:
    assert escape_markdown("a|b\\|c&lt;<b>&") == "a\\|b\\\\\\|c&amp;lt;&lt;b>&"
    assert [escape_csv(t) for t in ("=1", "+a", "-", "@x", "-5", "1e-3", "+2.5", "a=b")] == [
        "'=1", "'+a", "'-", "'@x", "-5", "1e-3", "+2.5", "a=b",
    ]  # fmt: skip
    assert escape_tex("a_b 50% \\x{y} ~^ ± é 漢 [1] *") == (
        r"a\_b 50\% \textbackslash{}x\{y\} \textasciitilde{}\textasciicircum{} $\pm$ e ? {[}1{]} {*}"
    )


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"status": "ok"}', '{"status": ["ok"]}', '{"status": "ok", "metrics": [], "protocol": 3}',
     '{"status": "ok", "metrics": {"test/log_likelihood": 1e999}, "protocol": {}}', "[" * 100_000, "\x00", "9" * 5000,
     '{"status": "ok", "metrics": {"test/log_likelihood": "1"}, "protocol": {"images": 1}, "seed": {}, "timing": []}',
     f'{{"status": "ok", "metrics": {{"test/log_likelihood": {"9" * 400}}}, "protocol": {{}}, "seed": {"9" * 400}}}',
     f'{{"status": "ok", "metrics": {{}}, "protocol": {{"split": {"[" * 500}{"]" * 500}}}, "data": {{}}}}'],
)  # fmt: skip
@pytest.mark.parametrize("way", ["compared", "listed"])
def test_damaged_records(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, way: str) -> None:
    write_plan(tmp_path, [job("vlae_t4_0", config()), job("bad", config(seed=1))])
    run(tmp_path, "vlae", 4, 0, 1.0)
    write_run(tmp_path / "bad", config(seed=1), None)
    (tmp_path / "bad" / "result.json").write_text(content)
    mix = ["--mix", "all"] if way == "compared" else ["--list"]
    for form in ("md", "csv"):
        assert main([str(tmp_path), "--format", form, *mix]) == 0
    text = capsys.readouterr().out
    assert way == "listed" or "1 of 2: 1.0000 (n=1); 1 " in text


LETTERS = "abcdefghijklmnopqrstuvwxyz"
BOMB = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{p: *{a}, q: *{a}}}\n" for a, b in pairwise(LETTERS))


@pytest.mark.parametrize(
    "content",
    ["", "[1", "- a", "a: &a [*a]", "a: &a {b: *a}", "x: !!python/object/apply:os.system [touch loaded]", "\x00",
     "model: 3", "? {a: b}\n: 1", BOMB, BOMB.replace("{p: ", "[").replace("q: ", "").replace("}", "]")],
)  # fmt: skip
def test_damaged_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0)
    write_run(tmp_path / "bad", config(seed=1), record(config(seed=1), 5.0))
    (tmp_path / "bad" / ".hydra" / "config.yaml").write_text(content)
    table = compare(tmp_path, TableSpec(mix=("all",)))
    assert table.cells["VLAE", "T=4"].values == {"0": 1.0}
    assert to_markdown([table])
    assert main([str(tmp_path), "--list"]) == 0
    assert not Path("loaded").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"jobs": 3}', '{"jobs": [3, {"folder": 3}, {"folder": "a\\u0000b"}, {}]}']
)
def test_damaged_plans(tmp_path: Path, content: str) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0)
    (tmp_path / "sweep.json").write_text(content)
    table = compare(tmp_path, TableSpec())
    assert len(table.cells) == 1
    assert any("sweep.json cannot be read" in note for note in table.notes) == (len(content) < 20)


def test_picture(table: Comparison) -> None:
    image = Image.open(io.BytesIO(to_png([table])))
    assert image.size[0] > 1200
    assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


def test_board(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path, "vae", None, seed, 30.0)
        for steps in (1, 4):
            run(tmp_path, "vlae", steps, seed, 40.0 + steps + seed)
    for _ in range(2):
        assert main([str(tmp_path), "--format", "tensorboard"]) == 0
    events = tensorboard(tmp_path / "table")
    assert len(list((tmp_path / "table").iterdir())) == 1  # made again, not beside
    assert [(e.step, e.value) for e in events.Scalars("table/test/log_likelihood/VLAE")] == [(1, 41.5), (4, 44.5)]
    assert [(e.step, e.value) for e in events.Scalars("table/test/log_likelihood/VAE")] == [(1, 30.0), (4, 30.0)]
    assert len(events.Images("table")) == 1
    assert "44.50 ± 0.71" in events.Tensors("table/text_summary")[0].tensor_proto.string_val[0].decode()


def test_steps_that_are_no_whole_numbers(tmp_path: Path) -> None:
    for number, rate in enumerate((0.5, 0.001)):
        run(tmp_path / str(rate), "vlae", 4, 0, float(number), **{"trainer.learning_rate": rate})
    actual = scalars(compare(tmp_path, TableSpec(columns="trainer.learning_rate")))
    assert actual == [("table/test/log_likelihood/VLAE", 0, 1.0), ("table/test/log_likelihood/VLAE", 1, 0.0)]


def test_write_all(tmp_path: Path) -> None:
    write_plan(tmp_path, [job("vlae_t4_0", config()), job("x", config(seed=1))])
    write_all(tmp_path)  # nothing is finished
    run(tmp_path, "vlae", 4, 0, 1.0)
    text = write_all(tmp_path)
    assert "1 of 2: 1.0000 (n=1); 1 missing" in text
    assert (tmp_path / "table.md").read_text() == text + "\n"
    for name in ("csv", "tex"):
        assert "1 missing" in (tmp_path / f"table.{name}").read_text()
    assert (tmp_path / "table.png").read_bytes()[:4] == b"\x89PNG"
    assert tensorboard(tmp_path / "table").Scalars("table/test/log_likelihood/VLAE")[0].step == 4
    run(tmp_path, "vlae", 4, 2, 1.0, **{"trainer.epochs": 3})
    with pytest.raises(InputError, match=r"trainer.epochs"):
        write_all(tmp_path)


def test_markdown_needs_no_heavy_imports(tmp_path: Path) -> None:
    run(tmp_path, "vlae", 4, 0, 1.0)
    heavy = "{'torch', 'matplotlib', 'scipy', 'omegaconf', 'hydra', 'numpy'}"
    code = f"import sys; from vaerun.cli.table import main; main([{str(tmp_path)!r}, '--rows', 'model']); "
    code += f"print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
