"""Words of vaerun-eval have the grammar of Hydra's overrides: what `vaerun` makes of a word, vaerun-eval does too."""

from __future__ import annotations

import hydra
import pytest
from omegaconf import OmegaConf

from vaerun.config.overrides import MAX_LETTERS, parse_overrides, unquote
from vaerun.config.plugins import builtin_config_dir
from vaerun.errors import InputError

WORDS = [
    "evaluation.samples=20", "evaluation.samples=1_000", "evaluation.samples=010", "evaluation.samples=0x1f",
    "evaluation.samples=int(3.7)", "evaluation.annealing.step_size=1e-3", "evaluation.annealing.step_size=-.5",
    "evaluation.ais=true", "evaluation.ais=FALSE", "evaluation.images=null", "seed=7", "++seed=8",
    "evaluation.split=test", "evaluation.split=yes", "evaluation.split=", "evaluation.split= test ",
    "evaluation.split=str(3)", r"evaluation.split='it\'s'", "evaluation.interpolation=[]",
    "evaluation.interpolation=[1,a,[2]]", "+evaluation.sets.a=[1,5]", "+evaluation.sets.b-c=[3]",
    "++evaluation.sets={a: [1, 2], b: [3]}", 'evaluation.arithmetic=["a - b", \'c\']', "evaluation.arithmetic=[a - b]",
    "evaluation.arithmetic=['']", "trainer.device=cuda:1", "evaluation.inception_weights=a:b@c",
    r"evaluation.inception_weights=C:\x\y", r"evaluation.inception_weights=a\=b\,c",
    "evaluation.inception_weights='/a dir/x=y,z.pth'", 'evaluation.inception_weights="é"',
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_word_means_what_it_means_to_vaerun(word: str) -> None:
    with hydra.initialize_config_dir(str(builtin_config_dir()), version_base="1.3"):
        composed = hydra.compose("config", [word])
    key = word.partition("=")[0].lstrip("+")
    expected = OmegaConf.to_container(OmegaConf.create({"x": OmegaConf.select(composed, key)}))
    parsed = OmegaConf.to_container(
        OmegaConf.create({"x": OmegaConf.select(OmegaConf.create(parse_overrides([word])), key)})
    )
    assert parsed == expected
    assert type(parsed["x"]) is type(expected["x"])  # 1 and 1.0, 1 and true are equal


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("evaluation.samples=1,2", "several values make a sweep"),
        ("evaluation.samples=choice(1,2)", "several values make a sweep"),
        ("seed=range(3)", "several values make a sweep"),
        ("evaluation.diversity=interval(0,1)", "several values make a sweep"),
        ("data=glob(*)", "several values make a sweep"),
        ("~evaluation.sets", "cannot delete keys"),
        ("~seed=0", "cannot delete keys"),
        ("evaluation.split=é", "unexpected 'é'"),
        ("evaluation.inception_weights=a=b", "mismatched input '='"),
        ("evaluation.samples=int(x)", "invalid literal for int()"),
        ("evaluation.samples=[1", "cannot read the override 'evaluation.samples=[1'"),
        ("data@evaluation=digits", "cannot set 'data@evaluation'"),
        ("seed=" + "[" * 5000, "cannot read the override"),
        ("seed=" + "9" * 5000, "cannot read the override"),
        ("evaluation.interpolation=[" + "1," * MAX_LETTERS + "1]", f"at most {MAX_LETTERS}"),
    ],
    ids=lambda text: text[:40],
)
def test_a_word_that_is_refused(word: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_overrides([word])
    assert says in str(refused.value)
    assert len(str(refused.value)) < 700


def test_the_run_may_be_quoted() -> None:
    assert [unquote(value) for value in ("a/b=c,d é", "'a b'", '"a\'b"', "a'")] == ["a/b=c,d é", "a b", "a'b", "a'"]
