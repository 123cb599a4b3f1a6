"""What a reader passes between the command and `optimizer.step()`: `python -m support.runs.spine WORDS...`.

Prints, as JSON, our frames on the stack at the first step of a run, and the files on the way: those that hold one of
these frames, or a function that one of them calls. The packages below training are left out: they are the model's.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import vaerun

ROOT = Path(vaerun.__file__).parent
PREFIX = f"{ROOT}{os.sep}"
BELOW_TRAINING = ("nets", "data", "distributions", "models", "inference", "estimators", "objectives", "evaluation")


def main(words: list[str]) -> None:
    called: dict[CodeType, set[str]] = defaultdict(set)  # files, by the code that called into them

    def ours(frame: FrameType | None) -> FrameType | None:
        """The innermost frame of vaerun's."""
        while frame is not None and not frame.f_code.co_filename.startswith(PREFIX):
            frame = frame.f_back
        return frame

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PREFIX) and code.co_name != "<module>":
            caller = ours(frame.f_back)
            if caller is not None:
                called[caller.f_code].add(code.co_filename)

    def first_step(self: torch.optim.Adam, *arguments: Any, **options: Any) -> None:
        sys.setprofile(None)
        stack, files = [], set()
        frame = ours(sys._getframe(1))
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            stack.append(f"{path.relative_to(ROOT)}: {frame.f_code.co_qualname}")
            files |= {str(path), *called[frame.f_code]}
            frame = ours(frame.f_back)
        names = sorted(str(Path(file).relative_to(ROOT)) for file in files)
        names = [name for name in names if not name.startswith((*BELOW_TRAINING, "randomness"))]
        print("\n" + json.dumps({"stack": stack[::-1], "files": names}), flush=True)
        os._exit(0)

    torch.optim.Adam.step = first_step  # type: ignore[assignment, method-assign]
    from vaerun.cli.main import main as command

    sys.argv = ["vaerun", *words]
    sys.setprofile(note)
    command()


if __name__ == "__main__":
    main(sys.argv[1:])
