"""`vaerun --help`: usage, config groups and their choices."""

from __future__ import annotations

from pathlib import Path

GROUPS = ("data", "model", "network", "estimator", "trainer", "evaluation", "experiment", "cell")

HELP = """vaerun: train and evaluate deep latent-variable models

  vaerun                              {default}
  vaerun model=vlae data=cifar10      choose from the groups below
  vaerun trainer.epochs=5 seed=1      set any key; `vaerun --cfg job` prints them all
  vaerun -m model=vae,vlae seed=0,1   sweep over all combinations (seed=range(5); sweep.jobs=2: two jobs at a time)
  vaerun --check ...                  check the configuration and print what would run
  vaerun --hydra-help                 Hydra's own flags; -sc install=bash sets up shell completion
  tensorboard --logdir outputs        view the runs

Re-running a command resumes its run. Exit codes: 0 done, 1 a run failed, 2 bad input, 130 interrupted (Ctrl-C),
75 stopped by another signal after saving (re-run to resume).
"""


def choices(group: str, folders: list[Path]) -> dict[str, str]:
    """Map each choice of a group to its description, the first comment of its file."""
    descriptions: dict[str, str] = {}
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            comments = [line.lstrip("# ").strip() for line in path.read_text(encoding="utf-8").splitlines()[:3]]
            descriptions[path.stem] = next((c for c in comments if c and not c.startswith("@package")), "")
    return descriptions


def help_text() -> str:
    """The usage, followed by all config groups with one line per choice."""
    from vaerun.config.plugins import config_dirs

    folders = config_dirs()
    lines = [HELP.format(default="a VLAE on scikit-learn's digits (no download, under a minute)")]
    for group in GROUPS:
        lines.append(f"{group}=")
        lines += [f"  {name:<22}{text}" for name, text in choices(group, folders).items()]
    return "\n".join(lines)
