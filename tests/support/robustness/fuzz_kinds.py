"""The kinds of mutated input: which command receives it, and which directories must not change."""

from __future__ import annotations

import contextlib
import json
import random as random_
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from support.robustness.fuzz_words import evaluation_words, override_words, table_words
from support.robustness.fuzzing import Case, call
from support.robustness.mutated_data import HAVE_TABLES, array_files, table_files, write_mutated
from support.robustness.mutation import (
    Random,
    mutate_bytes,
    mutate_checkpoint,
    mutate_document,
    mutate_json,
    mutate_npz,
    mutate_text,
    originals,
)
from support.runs.evaluating import CHEAP, SMALL

from vaerun.config.identity import fingerprint

IMAGES = np.random.RandomState(0).randint(0, 256, (40, 1, 8, 8)).astype(np.uint8)
ARRAYS = {"train_images": IMAGES[:30], "train_labels": np.arange(30) % 3, "test_images": IMAGES[30:],
          "test_labels": np.arange(10) % 3, "split": np.array("official")}  # fmt: skip
QUICK = [*SMALL, "trainer.max_steps=2", "evaluation.pictures=0"]


def dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


class Workspace:
    """A directory with a finished run, a plug-in package and data, from which inputs are made.

    Arguments:
        folder: empty; its subdirectory `work` is the working directory of all commands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.run = folder, folder / "work", folder / "base"
        self.work.mkdir()
        (self.work / "mine.txt").write_text("keep")
        assert call("vaerun", ["model=vae", *SMALL, f"output_dir={self.run}"]) == 0
        self.result = json.loads((self.run / "result.json").read_text())
        self.config = yaml.safe_load((self.run / ".hydra" / "config.yaml").read_text())
        self.states = {n: torch.load(self.run / "checkpoints" / f"{n}.pt", weights_only=True) for n in ("last", "best")}
        self.package = folder / "plugins" / "mutants"
        (self.package / "configs" / "model").mkdir(parents=True)
        (self.package / "__init__.py").write_text("")
        sys.path.append(str(self.package.parent))
        with np.load(self.run / "per_example.npz") as arrays:
            self.per_image = dict(arrays)

    def close(self) -> None:
        sys.path.remove(str(self.package.parent))

    def copy(self, leave_out: tuple[str, ...] = ("figures", "events*")) -> Path:
        """A copy of the finished run, to change."""
        target = self.folder / "changed"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.run, target, ignore=shutil.ignore_patterns(*leave_out)))

    def sign(self, plain: Any, run: Path) -> None:
        """Write the fingerprint of this configuration, so that a command gets past it."""
        try:
            data = plain["data"] | {"root": None}
            record = self.result | {
                "fingerprint": fingerprint(plain | {"data": data}, self.result["protocol"]["data_sha256"])
            }
            (run / "result.json").write_text(json.dumps(record))
        except (TypeError, KeyError, AttributeError, RecursionError, ValueError):
            pass


def overrides(workspace: Workspace, random: Random) -> Case:
    way = ["--check", *QUICK] if random.random() < 0.6 else ["--cfg", "job"]
    return Case("vaerun", [*way, *override_words(random)], unchanged=(workspace.work,))


def evaluation_of(workspace: Workspace, random: Random) -> Case:
    run = workspace.copy()
    return Case(
        "vaerun-eval",
        [f"run={run}", *CHEAP, *evaluation_words(random)],
        unchanged=(workspace.work,),
        atomic=(run,),
    )


def table_of(workspace: Workspace, random: Random) -> Case:
    return Case(
        "vaerun-table",
        [str(workspace.run), *table_words(random)],
        unchanged=(workspace.run,),
        atomic=(workspace.work,),
    )


def plugin(workspace: Workspace, random: Random) -> Case:
    """A model of a user's package."""
    base = yaml.safe_load(
        (
            Path(__file__).parents[3] / "configs" / "model" / f"{random.choice(('vlae', 'vae_iaf', 'gan'))}.yaml"
        ).read_text()
    )
    (workspace.package / "configs" / "model" / "mutant.yaml").write_bytes(mutate_document(random, base, dump))
    env = {"VAERUN_PLUGINS": "mutants", "PYTHONPATH": f"{Path(__file__).parents[3]}:{workspace.package.parent}"}
    way = ["--check", *QUICK] if random.random() < 0.7 else ["--cfg", "job"]
    return Case("vaerun", [*way, "model=mutant"], unchanged=(workspace.work, workspace.package), env=env)


def configuration(workspace: Workspace, random: Random) -> Case:
    """.hydra/config.yaml of a run directory, signed where that is possible."""
    run = workspace.copy()
    data = mutate_document(random, workspace.config, dump)
    (run / ".hydra" / "config.yaml").write_bytes(data)
    with contextlib.suppress(Exception):  # it cannot be signed: the command will report that it is invalid
        workspace.sign(yaml.safe_load(data), run)
    return open_run(workspace, random, run)


def open_run(workspace: Workspace, random: Random, run: Path) -> Case:
    """Open the directory by a random command."""
    words = [["--list"], ["--format", "csv"], ["--rows", "model"], ["--rows", "model", "--format", "tex"],
             ["--rows", "model", "--format", "csv"], ["--rows", "model", "--paired", "--mix", "all"]]  # fmt: skip
    how = random.random()
    if how < 0.5:
        return Case("load_run", [str(run)], unchanged=(run, workspace.work))
    if how < 0.95:
        return Case("vaerun-table", [str(run), *random.choice(words)], unchanged=(run, workspace.work))
    return Case("vaerun-eval", [f"run={run}"], unchanged=(workspace.work,), atomic=(run,))


def result_json(workspace: Workspace, random: Random) -> Case:
    run = workspace.copy()
    (run / "result.json").write_bytes(mutate_json(random, workspace.result))
    return open_run(workspace, random, run)


def plan(workspace: Workspace, random: Random) -> Case:
    run = workspace.copy()
    jobs = [{"folder": n, "words": ["seed=0"], "total_steps": 20, "config": workspace.config} for n in (".", "missing")]
    (run / "sweep.json").write_bytes(mutate_json(random, {"schema": 1, "command": ["vaerun"], "jobs": jobs}))
    lines = [json.dumps({"step": i, "epoch": i / 9, "val/elbo": -i}) for i in range(9)]
    (run / "metrics.jsonl").write_bytes(mutate_bytes(random, "\n".join(lines).encode()))
    if random.random() < 0.5:
        (run / "result.json").write_text(json.dumps(workspace.result | {"status": "running"}))
    return Case(
        "vaerun-table",
        [str(run), *random.choice(([], ["--list"], ["--format", "tex"]))],
        unchanged=(run, workspace.work),
    )


def best(workspace: Workspace, random: Random) -> Case:
    run = workspace.copy()
    (run / "checkpoints" / "best.pt").write_bytes(mutate_checkpoint(random, workspace.states["best"]))
    return Case("load_run", [str(run)], unchanged=(run, workspace.work))


def last(workspace: Workspace, random: Random) -> Case:
    """trainer.resume=PATH, or a run that resumes."""
    run = workspace.copy()
    (run / "checkpoints" / "last.pt").write_bytes(mutate_checkpoint(random, workspace.states["last"]))
    if random.random() < 0.6:
        words = [
            "--check",
            "model=vae",
            *SMALL,
            "trainer.max_steps=40",
            f"trainer.resume={run / 'checkpoints' / 'last.pt'}",
        ]
        return Case("vaerun", words, unchanged=(run, workspace.work))
    (run / "result.json").write_text(json.dumps(workspace.result | {"status": "interrupted"}))
    shutil.rmtree(run / "checkpoints" / "previous.pt", ignore_errors=True)
    return Case("vaerun", ["model=vae", *SMALL, f"output_dir={run}"], unchanged=(workspace.work,))


def per_image(workspace: Workspace, random: Random) -> Case:
    run = workspace.copy()
    (run / "per_example.npz").write_bytes(mutate_npz(random, workspace.per_image))
    other = run / "other"
    shutil.copytree(workspace.run, other, ignore=shutil.ignore_patterns("figures", "checkpoints", "events*"))
    plain = workspace.config | {"model": workspace.config["model"] | {"name": "vae_hf"}}
    (other / ".hydra" / "config.yaml").write_text(dump(plain))
    if random.random() < 0.1:
        shutil.rmtree(other)
        return Case("vaerun-eval", [f"run={run}"], unchanged=(workspace.work,), atomic=(run,))
    return Case(
        "vaerun-table", [str(run), "--rows", "model", "--paired", "--mix", "all"], unchanged=(run, workspace.work)
    )


def data_file(workspace: Workspace, random: Random) -> Case:
    """A user's npz file: data.path, and a prepared file below VAERUN_DATA."""
    folder = workspace.folder / "data"
    folder.mkdir(exist_ok=True)
    (folder / "mnist.npz").write_bytes(mutate_npz(random, ARRAYS))
    env = {"VAERUN_CACHE": str(workspace.folder / "cache-of-data")}
    shutil.rmtree(workspace.folder / "cache-of-data", ignore_errors=True)
    if random.random() < 0.9:
        return Case(
            "vaerun-data", ["mnist"], unchanged=(folder, workspace.work), env=env | {"VAERUN_DATA": str(folder)}
        )
    path = folder / "mnist.npz"
    words = [
        "--check",
        *QUICK,
        "model=vae",
        "data=npz",
        f"data.path={path}",
        "trainer.batch_size=8",
        "data.train_images=null",
    ]
    return Case("vaerun", words, unchanged=(folder, workspace.work), env=env)


def images(workspace: Workspace, random: Random) -> Case:
    """A folder of image files, one of them changed."""
    from PIL import Image

    folder = workspace.folder / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for i in range(12):
        kind = random.choice(("png", "jpg", "bmp", "webp", "ppm", "tiff"))
        Image.fromarray(IMAGES[i, 0]).convert("RGB").save(folder / f"{i}.{kind}")
    chosen = random.choice(sorted(folder.iterdir()))
    chosen.write_bytes(mutate_bytes(random, chosen.read_bytes()))
    if random.random() < 0.2:
        (folder / f"odd{random.randrange(99)}.png").write_bytes(
            random.choice((b"", b"GIF89a", b"%!PS\n", b"\xff" * 40))
        )
    words = [
        "--check",
        *QUICK,
        "model=vae",
        "data=folder",
        f"data.path={folder}",
        "trainer.batch_size=4",
        "data.train_images=null",
    ]
    return Case("vaerun", words, unchanged=(folder, workspace.work))


def other_format(workspace: Workspace, random: Random, data: str, sets: dict[str, dict[str, bytes]]) -> Case:
    """A data set in another project's format, read by a function or by a run."""
    folder = workspace.folder / "other"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = write_mutated(random, folder, sets)
    if random.random() < 0.98:
        return Case("load_arrays", [data, str(path)], unchanged=(folder, workspace.work))
    words = ["--check", *QUICK, "model=vae", f"data={data}", f"data.path={path}", "trainer.batch_size=4"]
    return Case("vaerun", [*words, "data.train_images=null"], unchanged=(folder, workspace.work))


def array_file(workspace: Workspace, random: Random) -> Case:
    """A file of IDX, .npy, MATLAB or text, by data=file."""
    return other_format(workspace, random, "file", array_files())


def table_file(workspace: Workspace, random: Random) -> Case:
    """A table of Arrow or Parquet, by data=hf."""
    return other_format(workspace, random, "hf", table_files())


def raw_files(workspace: Workspace, random: Random) -> Case:
    """What a server sends in place of the files of a built-in source: idx, mat, batches of pickles."""
    served = workspace.folder / "served"
    served.mkdir(exist_ok=True)
    name = random.choice(("mnist", "fashion_mnist", "cifar10", "svhn"))
    (served / "content").write_bytes(mutate_bytes(random, random.choice(originals())))
    empty = workspace.folder / "empty"
    empty.mkdir(exist_ok=True)
    env = {"VAERUN_CACHE": str(workspace.folder / "cache-of-raw"), "VAERUN_DATA": str(empty)}
    env |= {"https_proxy": "http://127.0.0.1:9"}  # nobody is there: a process of its own reaches no server
    return Case("vaerun-data", [name], unchanged=(workspace.work, empty), env=env)


def events(workspace: Workspace, random: Random) -> Case:
    """TensorBoard's files in a run that goes on, and in the folder that a table is written to."""
    run = workspace.copy(("figures",))
    base = next(run.glob("events.out.tfevents.*"))
    for _ in range(random.choice((1, 2))):
        name = f"events.out.tfevents.{mutate_text(random, '1700000000')}.{mutate_text(random, 'host.1.0')}".replace(
            "/", "_"
        ).replace("\0", "")
        place = run / random.choice((".", "table")) / name[:100].encode("utf-8", "replace").decode()
        place.parent.mkdir(exist_ok=True)
        if random.random() < 0.1:
            place.mkdir(exist_ok=True)
        elif not place.is_dir():
            place.write_bytes(mutate_bytes(random, base.read_bytes()[:2000]))
    if random.random() < 0.85:
        return Case(
            "vaerun-table", [str(run), "--rows", "model", "--format", "tensorboard"], unchanged=(workspace.work,)
        )
    (run / "result.json").write_text(json.dumps(workspace.result | {"status": "interrupted"}))
    return Case("vaerun", ["model=vae", *SMALL, f"output_dir={run}"], unchanged=(workspace.work,))


# kind -> (how a case is made, inputs a night, inputs in CI)
KINDS: dict[str, tuple[Callable[[Workspace, Random], Case], int, int]] = {
    "result.json": (result_json, 4000, 60),
    ".hydra/config.yaml": (configuration, 3500, 60),
    "best.pt": (best, 2500, 60),
    "npz data file": (data_file, 3000, 60),
    "yaml of a plug-in package": (plugin, 600, 30),
    "sweep.json and metrics.jsonl": (plan, 2000, 40),
    "vaerun-table's words": (table_of, 2000, 40),
    "per_example.npz": (per_image, 1000, 30),
    "vaerun-eval's words": (evaluation_of, 300, 10),
    "raw files of the sources": (raw_files, 500, 20),
    "overrides": (overrides, 1000, 70),
    "image folder": (images, 150, 10),
    "last.pt": (last, 150, 6),
    "TensorBoard events": (events, 120, 4),
    "IDX, npy, mat and amat files": (array_file, 3000, 60),
}
if HAVE_TABLES:
    KINDS["Arrow and Parquet tables"] = (table_file, 3000, 60)


def case_factory(workspace: Workspace, kind: str) -> Callable[[int], Case]:
    """The case of a number; the same each time."""
    return lambda number: KINDS[kind][0](workspace, random_.Random(f"{kind} {number}"))
