"""`vaerun-eval`: evaluate a finished run again."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vaerun.cli.console import reporting_errors
from vaerun.deprecation import silence_torch_warnings
from vaerun.errors import InputError, Interrupted
from vaerun.signals import interrupt_on_signal
from vaerun.text import print_output

HELP = """vaerun-eval: evaluate a finished run again

  vaerun-eval run=DIR evaluation.samples=50000            more importance samples
  vaerun-eval run=DIR evaluation.ais=true                 annealed importance sampling
  vaerun-eval run=DIR evaluation.bdmc=true                bounds on the log-likelihood of simulated data
  vaerun-eval run=DIR evaluation.estimates=true           picture of estimates of log p(x) against K
  vaerun-eval run=DIR evaluation.gaps=true                approximation and amortisation gap
  vaerun-eval run=DIR data=fashion_mnist                  another data set with images of the same shape
  vaerun-eval run=DIR data.path=NEW                       the run's data, which have moved (same sha256)
  vaerun-eval run=DIR data.path=NEW data.changed=true     other data in their place
  vaerun-eval run=DIR evaluation.split=validation         another split
  vaerun-eval run=DIR evaluation.quality=true             Frechet distance, precision and recall of generated images
  vaerun-eval run=DIR evaluation.interpolation=[3,17]     images between samples 3 and 17
  vaerun-eval run=DIR evaluation.sets.a=[1,5] 'evaluation.arithmetic=["a - 7 + 9"]'   latent arithmetic

Keys are those of `data`, `evaluation`, `seed` and `trainer.device`, in the syntax of `vaerun`; all others keep the
run's values, except the device (auto). Results are stored alongside the original ones: metrics in result.json
(`evaluations`), values per image in per_example.npz, figures in figures/ and TensorBoard.

Keys of `evaluation`, with their defaults:
"""
ADVERSARIAL = """
For adversarial models (gan, dcgan, cgan, infogan):
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    with reporting_errors("vaerun-eval") as outcome:
        if {"-h", "--help"} & set(words):
            print_output(_help())
        else:
            _run(words)
    return outcome.exit_code


def _help() -> str:
    from vaerun.config.plugins import group_file

    text = ""
    for introduction, name in ((HELP, "default"), (ADVERSARIAL, "adversarial")):
        text += introduction + group_file("evaluation", name).read_text(encoding="utf-8").partition("\n")[2]
    return text.rstrip("\n")


def _run(words: list[str]) -> None:
    folders = [w.partition("=")[2] for w in words if w.startswith("run=")]
    flags = [w for w in words if w.startswith("-")]
    if flags:
        raise InputError(f"unknown flag '{flags[0]}' (vaerun-eval --help)")
    if len(folders) != 1 or not folders[0]:
        raise InputError("name one run directory: vaerun-eval run=DIR (see vaerun-eval --help)")
    from vaerun.config.overrides import unquote

    silence_torch_warnings()
    from vaerun.run.reevaluate import reevaluate
    from vaerun.signals import ShutdownSignal
    from vaerun.storage.paths import expand_user

    stop = ShutdownSignal(on_immediate=interrupt_on_signal("vaerun-eval"))
    try:
        reevaluate(expand_user(unquote(folders[0])), [w for w in words if not w.startswith("run=")], stop)
    except Interrupted as error:
        raise Interrupted(error.signum, "nothing was recorded: run the same command again to start over") from None


if __name__ == "__main__":
    sys.exit(main())
