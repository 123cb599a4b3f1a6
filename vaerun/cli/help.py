"""`vaerun --help`: the groups of the configuration and their choices."""

from __future__ import annotations

from pathlib import Path

GROUPS = ("data", "model", "network", "estimator", "trainer", "evaluation", "experiment", "cell")

HELP = """vaerun: train, evaluate and record deep latent-variable models

  vaerun                              {default}
  vaerun model=vlae data=cifar10      choose from the groups below
  vaerun trainer.epochs=5 seed=1      set any key; `vaerun --cfg job` lists all
  vaerun -m model=vae,vlae seed=0,1   a sweep (seed=range(5); sweep.jobs=2: two at once)
  vaerun --check ...                  compose and check only, and print what would be run
  vaerun --hydra-help                 Hydra's own flags; -sc install=bash installs completion
  tensorboard --logdir outputs        look at the runs

The same command again goes on where it stopped. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted,
75 stopped after saving (run again to go on).
"""


def choices(group: str, folders: list[Path]) -> dict[str, str]:
    """Options of a group with the first comment line of each file."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            comments = [line.lstrip("# ").strip() for line in path.read_text(encoding="utf-8").splitlines()[:3]]
            found[path.stem] = next((c for c in comments if c and not c.startswith("@package")), "")
    return found


def help_text() -> str:
    """All groups, their choices with a line each."""
    from vaerun.config.plugins import config_folders, own_config_folder

    folders = [own_config_folder(), *config_folders()]
    lines = [HELP.format(default="the VLAE on scikit-learn's digits (no download, under a minute)")]
    for group in GROUPS:
        lines.append(f"{group}=")
        lines += [f"  {name:<22}{text}" for name, text in choices(group, folders).items()]
    return "\n".join(lines)
