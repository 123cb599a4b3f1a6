"""Report the results of gpu_check.sh so far, as OUT/gpu_check.json and OUT/gpu_check.md: `gpu_report.py OUT`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any


def calls(out: Path, stage: str) -> list[dict[str, Any]]:
    """Invocations of a stage, each with command, exit status and seconds."""
    path = out / f"{stage}.calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def runs(out: Path) -> list[dict[str, Any]]:
    """Final metrics of each run of the table, or its progress."""
    rows = []
    for path in sorted((out / "table").rglob("result.json")):
        result = json.loads(path.read_text())
        metrics, timing = result["metrics"], result["timing"]
        last: dict[str, Any] = {}
        lines = path.with_name("metrics.jsonl")
        for line in lines.read_text().splitlines() if lines.exists() else []:
            last |= json.loads(line)
        rows.append(
            {
                "run": str(path.parent.relative_to(out / "table")),
                "words": [word for word in result["command"][1:] if word.startswith(("cell=", "seed="))],
                "status": result["status"],
                "step": last.get("step"),
                "val/elbo": metrics.get("val/elbo", last.get("val/elbo")),
                "test/log_likelihood": metrics.get("test/log_likelihood"),
                "test/log_likelihood_se": metrics.get("test/log_likelihood_se"),
                "pareto_k_unreliable": metrics.get("test/pareto_k_unreliable"),
                "images": result["protocol"].get("evaluated_images", result["protocol"].get("images", {}).get("test")),
                "steps_per_second": timing.get("steps_per_second"),
                "train_seconds": timing.get("train_seconds"),
                "evaluation_seconds": timing.get("evaluation_seconds"),
                "environment": result.get("environment"),
                "error": result.get("error"),
            }
        )
    return rows


def number(value: float | None, digits: int = 1) -> str:
    """Format a value for a table."""
    return "" if value is None else f"{value:.{digits}f}"


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = ["# GPU check", ""]
    for stage, invocations in report["stages"].items():
        for call in invocations:
            end = "done" if call["status"] == 0 else f"ended with exit code {call['status']}"
            lines.append(f"* {stage}: {end} after {call['seconds']} s: `{call['command']}`")
    lines += [f"* {key}: {value}" for key, value in (report["bench"] or {}).get("machine", {}).items()]
    for case in (report["bench"] or {}).get("cases", []):
        lines += ["", f"## {case['case']}", "", f"| form | {case['unit']}: median | times the first | of the floor |"]
        lines.append("| --- | --- | --- | --- |")
        first: list[float] | None = None
        for form, seconds in case["seconds"].items():
            first = first or seconds
            ratio = statistics.median(b / a for a, b in zip(first, seconds, strict=True))
            floor = case["floor_seconds"]
            share = "" if floor is None else f"{floor / statistics.median(seconds):.0%}"
            lines.append(f"| {form} | {1000 * statistics.median(seconds):.3g} ms | {ratio:.2f} | {share} |")
    if report["runs"]:
        lines += ["", "## Table: log-likelihood in nats per image, importance-weighted (a lower bound)", ""]
        lines.append(
            "| run | status | test log-likelihood | standard error | val/elbo | steps | steps/s | training s | "
            "evaluation s |"
        )
        lines.append("| --- " * 9 + "|")
        for run in report["runs"]:
            values = [
                " ".join(run["words"]) or run["run"], run["status"], number(run["test/log_likelihood"]),
                number(run["test/log_likelihood_se"], 2), number(run["val/elbo"]), str(run["step"]),
                number(run["steps_per_second"]), number(run["train_seconds"]), number(run["evaluation_seconds"]),
            ]  # fmt: skip
            lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def main(out: Path) -> None:
    """Write both files and print the Markdown."""
    bench = out / "bench.json"
    report = {
        "stages": {stage: calls(out, stage) for stage in ("checks", "bench", "table")},
        "bench": json.loads(bench.read_text()) if bench.exists() else None,
        "runs": runs(out),
    }
    (out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "gpu_check.md").write_text(markdown(report))
    print(markdown(report), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
