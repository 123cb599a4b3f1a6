"""Composition of a sweep's jobs, each with those of the sweep's overrides whose keys it has.

Which keys a configuration has depends on its choices: `evaluation.samples` belongs to models with a likelihood, not to
adversarial ones. Hydra rejects an override of a key that the configuration lacks; in a sweep over model=vae,gan it is
left out of the GAN, since the VAE has it. A key that no job of the sweep has is still an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError


class MissingKeys(ConfigCompositionException):
    """A configuration lacks the keys of some overrides.

    Attributes:
        words: these overrides.
    """

    def __init__(self, errors: dict[str, Exception]) -> None:
        super().__init__(str(next(iter(errors.values()))))
        self.words, self.errors = list(errors), errors


@dataclass(frozen=True)
class ComposedJob:
    """A job's configuration.

    Attributes:
        words: its overrides.
        left_out: overrides of the sweep whose keys it lacks.
        config: composed from `words`, with the group `hydra`.
    """

    words: list[str]
    left_out: list[str]
    config: DictConfig


@contextmanager
def collecting_missing_keys(is_sweep: Callable[[], bool]) -> Iterator[None]:
    """While active, Hydra reports all overrides without a key at once, by MissingKeys.

    Arguments:
        is_sweep: whether the configuration being composed is that of the sweep as a whole, which only serves Hydra's
            own settings: it has the default choices instead of the jobs', and overrides that it lacks are ignored.
    """
    original = ConfigLoaderImpl._apply_overrides_to_config

    def apply(overrides: list[Override], cfg: DictConfig) -> None:
        errors: dict[str, Exception] = {}
        for override in overrides:
            try:
                original([override], cfg)
            except ConfigCompositionException as error:
                missing = isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError)
                if not missing or override.is_hydra_override():
                    raise
                errors[str(override.input_line)] = error
        if errors and not is_sweep():
            raise MissingKeys(errors)

    loader: Any = ConfigLoaderImpl
    loader._apply_overrides_to_config = staticmethod(apply)
    try:
        yield
    finally:
        loader._apply_overrides_to_config = staticmethod(original)


def compose_jobs(
    compose: Callable[[list[str]], DictConfig], batch: Sequence[Sequence[str]], strict: bool = False
) -> list[ComposedJob]:
    """Compose each job from the overrides whose keys it has.

    Arguments:
        compose: composes a configuration from overrides; raises MissingKeys.
        batch: overrides of each job.
        strict: every job must have every key. A search does not know its later jobs.

    Raises MissingKeys for a key that no job has.
    """
    jobs, errors = [], dict[str, Exception]()
    for overrides in batch:
        words, left_out = list(overrides), list[str]()
        try:
            config = compose(words)
        except MissingKeys as error:
            if strict:
                raise
            errors |= error.errors
            left_out = error.words
            words = [word for word in words if word not in left_out]
            config = compose(words)
        jobs.append(ComposedJob(words, left_out, config))
    known = {_key(word) for job in jobs for word in job.words}
    if unknown := {word: error for word, error in errors.items() if _key(word) not in known}:
        raise MissingKeys(unknown)
    return jobs


def describe_left_out(jobs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> str:
    """Which keys were left out of which choices, in words; "" if none was.

    Arguments:
        jobs: (overrides, overrides left out) of each job.
    """
    keys = dict.fromkeys(_key(word) for _, left_out in jobs for word in left_out)
    parts = []
    for key in keys:
        without = [words for words, left_out in jobs if key in map(_key, left_out)]
        having = [words for words, left_out in jobs if key in map(_key, words)]
        parts.append(f"{key} of {', '.join(_distinguishing_choices(without, having))}")
    return f"left out, for lack of such a key: {'; '.join(parts)}" if parts else ""


def _distinguishing_choices(without: Sequence[Sequence[str]], having: Sequence[Sequence[str]]) -> list[str]:
    """The choices, such as model=gan, that tell the first jobs from the others."""
    choices = [[word for word in words if "." not in _key(word) and _key(word) != "seed"] for words in without]
    for group in dict.fromkeys(_key(word) for words in choices for word in words):
        values = [word for words in choices for word in words if _key(word) == group]
        if len(values) == len(without) and not any(value in words for value in values for words in having):
            return list(dict.fromkeys(values))
    return list(dict.fromkeys(map(" ".join, choices)))


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")
