"""Each job of a sweep is composed from the overrides whose keys it has."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from vaerun.sweep.composition import MissingKeys, compose_jobs, describe_left_out
from vaerun.sweep.plan import table_rows

KEYS = {
    "vae": {"model", "seed", "samples.k"},
    "vlae": {"model", "seed", "samples.k", "steps"},
    "gan": {"model", "seed"},
}


def compose(words: list[str]) -> DictConfig:
    """Stands in for Hydra, with the keys of KEYS."""
    values = dict(word.split("=") for word in words)
    missing = {word: ValueError(word) for word in words if word.split("=")[0] not in KEYS[values["model"]]}
    if missing:
        raise MissingKeys(missing)
    return OmegaConf.create({key.replace(".", "_"): value for key, value in values.items()})


def test_a_job_keeps_what_it_has() -> None:
    batch = [[f"model={model}", "samples.k=5", f"steps={n}"] for model in ("vlae", "vae", "gan") for n in (1, 2)]
    jobs = compose_jobs(compose, batch)
    assert [job.words for job in jobs] == [
        ["model=vlae", "samples.k=5", "steps=1"],
        ["model=vlae", "samples.k=5", "steps=2"],
        ["model=vae", "samples.k=5"],
        ["model=vae", "samples.k=5"],
        ["model=gan"],
        ["model=gan"],
    ]
    assert [job.left_out for job in jobs[:3]] == [[], [], ["steps=1"]]
    assert jobs[5].left_out == ["samples.k=5", "steps=2"]
    assert jobs[5].config == {"model": "gan"}


def test_a_key_that_no_job_has_is_refused() -> None:
    with pytest.raises(MissingKeys) as caught:
        compose_jobs(compose, [["model=vae", "samples.k=5", "sampels=5"], ["model=gan", "samples.k=5", "sampels=5"]])
    assert caught.value.words == ["sampels=5"]
    with pytest.raises(MissingKeys):  # the others have no say in a single run
        compose_jobs(compose, [["model=gan", "samples.k=5"]])


def test_a_search_is_strict() -> None:
    """It does not know its later jobs, which may have the key."""
    with pytest.raises(MissingKeys):
        compose_jobs(compose, [["model=vae", "samples.k=5"], ["model=gan", "samples.k=5"]], strict=True)


def test_what_was_left_out_is_told_by_choices() -> None:
    batch = [[f"model={m}", "samples.k=5", "steps=2", f"seed={s}"] for m in ("vlae", "vae", "gan") for s in (0, 1)]
    jobs = [(job.words, job.left_out) for job in compose_jobs(compose, batch)]
    expected = "left out, for lack of such a key: steps of model=vae, model=gan; samples.k of model=gan"
    assert describe_left_out(jobs) == expected
    assert describe_left_out(jobs[:2]) == ""


@pytest.mark.parametrize(
    ("jobs", "rows"),
    [
        ([(["model=vae", "samples.k=5"], []), (["model=gan"], ["samples.k=5"])], "model"),
        ([(["model=vae", "samples.k=5"], []), (["model=vae"], [])], "model,samples.k"),
        (
            [(["model=vae", "k=5"], []), (["model=vae", "k=6"], []), (["model=gan"], ["k=5"])],
            "model,k",
        ),
        ([(["data.path=a"], []), (["data.path=b"], [])], "model,data.path"),
    ],
)
def test_a_key_that_a_job_lacks_does_not_vary_for_that(jobs: list[Any], rows: str) -> None:
    assert table_rows(jobs, {"rows": "model", "columns": "steps"}) == rows
