"""Run directories and plans of sweeps made by hand, with exactly known numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vaerun.report import comparison
from vaerun.report.comparison import Comparison
from vaerun.report.table_spec import TableSpec

SHA = "ab" * 32


def config(model: str = "vlae", steps: int | None = 4, seed: int = 0, **dotted: Any) -> dict[str, Any]:
    """A resolved configuration; further settings as {"trainer.epochs": 3}."""
    inference = {"_target_": "x"} | ({} if steps is None else {"steps": steps})
    found: dict[str, Any] = {
        "data": {"name": "cifar10", "root": None, "path": None, "binarize": "none", "train_images": 20000},
        "model": {
            "name": model, "family": "likelihood", "latent_dim": 16, "likelihood": "gaussian", "conditional": False,
            "encoder": {"hidden": [128]}, "decoder": {"_target_": "vaerun.nets.MLPDecoder", "hidden": [128]},
            "inference": inference,
        },
        "estimator": {"name": "elbo", "samples": 1},
        "trainer": {
            "epochs": 15, "max_steps": None, "batch_size": 128, "learning_rate": 0.001, "device": "auto",
            "resume": "auto", "log_every": 50, "processes": 1,
        },
        "evaluation": {"samples": 5000, "images": 2000, "chunk": None},
        "sweep": {
            "jobs": None,
            "table": {"rows": "model", "columns": "model.inference.steps", "metric": None, "published": None},
        },
        "seed": seed,
        "output_dir": "/somewhere",
    }  # fmt: skip
    for key, value in dotted.items():
        put(found, key, value)
    return found


def put(nested: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        nested = nested.setdefault(part, {})
    nested[last] = value


def record(settings: dict[str, Any], value: float | None, status: str = "ok", **dotted: Any) -> dict[str, Any]:
    """A result.json of these settings; further entries as {"protocol.split": "other"}."""
    found: dict[str, Any] = {
        "schema": 1,
        "status": status,
        "fingerprint": json.dumps([settings["model"], settings["trainer"], settings["seed"]], sort_keys=True),
        "model": settings["model"]["name"],
        "data": settings["data"]["name"],
        "estimator": "elbo",
        "seed": settings["seed"],
        "metrics": {} if value is None else {"test/log_likelihood": value, "test/elbo": value - 5},
        "protocol": {
            "family": "likelihood", "units": "nats per image", "likelihood": settings["model"]["likelihood"],
            "binarize": "none", "dequantize": False, "logit": False, "conditional": False,
            "images": {"train": 18000, "validation": 2000, "test": 10000}, "split": "the official one",
            "validation_split": "2000 training images by seed 1", "data_sha256": SHA, "training_samples": 1,
            "importance_samples": 5000, "evaluated_split": "test", "evaluated_images": 2000,
            "selection": "best val/elbo", "started_from": None, "selected_epoch": 15.0,
        },
        "timing": {"train_seconds": 10.0, "train_steps": 100, "steps_per_second": 11.0, "evaluation_seconds": 4.0},
        "environment": {"device": "cpu", "device_name": "some CPU", "threads": 1, "torch": "2.15.0", "vaerun": "0.1.0"},
        "error": None,
    }  # fmt: skip
    for key, entry in dotted.items():
        put(found, key, entry)
    return found


def write_run(folder: Path, settings: dict[str, Any], result: dict[str, Any] | None, lines: str = "") -> Path:
    """The directory of a run."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    if lines:
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder


def run(
    root: Path, model: str, steps: int | None, seed: int, value: float | None, status: str = "ok", **own: Any
) -> Path:
    """A run in MODEL_tT_SEED; `own`: settings, or with the prefix `record.` entries of result.json."""
    entries = {k.removeprefix("record."): v for k, v in own.items() if k.startswith("record.")}
    settings = config(model, steps, seed, **{k: v for k, v in own.items() if not k.startswith("record.")})
    return write_run(root / f"{model}_t{steps}_{seed}", settings, record(settings, value, status, **entries))


def job(folder: str, settings: dict[str, Any], total_steps: int = 200) -> dict[str, Any]:
    """A job of a plan; its config is a copy, as from another file."""
    own = {"folder": folder, "fingerprint": "f", "words": []}
    return own | {"total_steps": total_steps, "config": copy.deepcopy(settings)}


def write_plan(root: Path, jobs: list[dict[str, Any]]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "sweep.json").write_text(json.dumps({"schema": 1, "command": ["vaerun", "-m"], "jobs": jobs}))


def per_image(folder: Path, values: Any, name: str = "log_likelihood") -> None:
    np.savez_compressed(folder / "per_example.npz", **{name: np.asarray(values, dtype=np.float64)})


def paper(root: Path, seeds: int = 3, spread: float = 0.4) -> None:
    """A comparison as the paper's, 17 cells: values rise with T, each seed's own shift known."""
    for model, base, rise in (("sa_vae", 1830, 2), ("vae_hf", 1804, -1), ("vae_iaf", 1815, 3), ("vlae", 1836, 5)):
        for steps in (1, 2, 4, 8):
            for seed in range(seeds):
                took = {"record.timing.train_seconds": (20.0 + steps * (4 if model == "vae_hf" else 12))}
                value = base + rise * steps**0.5 + spread * (seed - 1)
                run(root, model, steps, seed, value, **took)
    for seed in range(seeds):
        run(root, "vae", None, seed, 1810.1 + spread * (seed - 1), **{"record.timing.train_seconds": 17.0})


def compare(folder: Path, spec: TableSpec) -> Comparison:
    """The comparison by the first metric, the only one of runs without test/amis."""
    return comparison.compare(folder, spec)[0]
