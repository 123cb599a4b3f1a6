"""Command-line arguments: valid, invalid and mutated."""

from __future__ import annotations

from dataclasses import asdict

from support.robustness.mutation import Random, mutate_text, odd_value

from vaerun.config.schema import Settings
from vaerun.config.settings import dotted_keys

KEYS = list(dotted_keys(asdict(Settings())))
GROUPS = ("data", "model", "network", "estimator", "trainer", "evaluation", "experiment", "cell")
NAMES = """vae vlae sa_vae vae_iaf ppca ae draw gan dcgan infogan mlp conv gan_mlp elbo iwae renyi score_function digits
npz folder mnist default adversarial cifar10_quick""".split()  # noqa: SIM905
VALUES = """1 0 -1 2 0.5 1e-3 1e400 nan inf null true false [] [8] [4,4] {} {a:1} '' "" x ??? ${seed} ${oc.env:HOME} ${
gaussian bernoulli dynamic fixed cpu cuda /dev/null . .. 1,2 range(3) choice(1,2) 999999999999999999999999999999 é
""".split()  # noqa: SIM905
FLAGS = """--help -h -m --check --cfg --cfg=job -c hydra.verbose=true --info hydra/launcher=x hydra.run.dir=.
hydra.mode=RUN hydra.job.chdir=true --resolve hydra.output_subdir=null --package=x -p --config-name=x --config-dir=/
--run --multirun --config-path=x hydra.searchpath=[x] --hydra-help --version""".split()  # noqa: SIM905
TABLE = "--rows --columns --metric --published --where --mix --format --list --paired --output".split()  # noqa: SIM905
ANSWERS = ["none", "model,seed", "seed=0", "test/elbo", "all", "md", "tex", "csv", ""]


def override(random: Random) -> str:
    """One override of the command `vaerun`."""
    how = random.randrange(12)
    key = random.choice(KEYS)
    if how < 5:
        made = f"{key}={random.choice(VALUES)}"
    elif how < 7:
        made = f"{random.choice(GROUPS)}={random.choice(NAMES)}"
    elif how == 7:
        made = random.choice(("+", "++", "~", "-", "--", "")) + f"{key}={random.choice(VALUES)}"
    elif how == 8:
        made = f"{key}={odd_value(random)}"
    elif how == 9:
        made = random.choice(FLAGS)
    else:
        made = mutate_text(random, f"{key}={random.choice(VALUES)}")
    return mutate_text(random, made) if random.random() < 0.15 else made


def as_argument(made: str) -> str:
    """Make text usable as an argument of a process: no NUL and no lone surrogates."""
    return made.replace("\0", "").encode("utf-8", "replace").decode()


def override_words(random: Random) -> list[str]:
    """A few overrides, none of them expensive."""
    overrides = [as_argument(override(random)) for _ in range(random.choice((1, 1, 2, 3)))]
    expensive = ("--info", "--hydra-help", "-sc", "experiment=", "cell=", "data=mnist")
    return [w for w in overrides if not w.startswith(expensive)] or ["seed=x"]


def evaluation_words(random: Random) -> list[str]:
    """The same for `vaerun-eval`."""
    words = []
    for _ in range(random.choice((1, 1, 2))):
        key = random.choice([k for k in KEYS if k.startswith(("evaluation", "data", "seed", "trainer.device"))])
        made = f"{key}={random.choice(VALUES) if random.random() < 0.7 else odd_value(random)}"
        words.append(as_argument(mutate_text(random, made) if random.random() < 0.3 else made))
    return [w for w in words if not any(s in w for s in ("9999999999", "samples=1e", "data=mnist", "data=cifar"))]


def table_words(random: Random) -> list[str]:
    """The same for `vaerun-table`."""
    words = []
    for _ in range(random.choice((1, 2, 3))):
        flag = random.choice(TABLE)
        pair = f"{random.choice(KEYS)}={random.choice(VALUES)}"
        value = random.choice((random.choice(KEYS), *ANSWERS, pair, str(odd_value(random))))
        value = mutate_text(random, value) if random.random() < 0.3 else value
        words += [flag] if flag in ("--list", "--paired") else [flag, as_argument(value)]
    return words
