"""What to write instead of an unknown key: by the meaning of its name in other libraries, else by its spelling."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from vaerun.config.familiar import BY_NAME, plain_name

SIBLING, ELSEWHERE, FAMILIAR = 0.7, 0.8, 0.85
"""Similarity from which a name counts as a misspelling of a key of the same group, of another, of a familiar name."""


def suggest_key(key: str, known: Collection[str], absent: str = "which this configuration does not have") -> str:
    """The end of an error line for an unknown key, such as ' Did you mean trainer.learning_rate?'; '' for no idea.

    Arguments:
        key: the unknown key, dotted.
        known: the dotted keys (and groups) that exist.
        absent: what to say of a key that is not among them.
    """
    group, _, leaf = key.rpartition(".")
    same_leaf = {k.rpartition(".")[0]: k for k in known if k.rpartition(".")[2] == leaf}
    if group and (close := get_close_matches(group, same_leaf, n=1, cutoff=FAMILIAR)):
        return _question(same_leaf[close[0]])  # the group is misspelled
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == group}
    if "." in group and (containing := [k for name, k in siblings.items() if leaf in name.split("_")]):
        return _question(*containing[:2])  # a group such as evaluation.gap has names of its own
    if plain_name(key) not in BY_NAME and (close := get_close_matches(leaf, siblings, n=1, cutoff=SIBLING)):
        return _question(siblings[close[0]])
    return _by_meaning(key, known, absent) or _by_spelling(key, known)


def _by_meaning(key: str, known: Collection[str], absent: str) -> str:
    """Advice from the table of familiar names, which may be misspelled themselves."""
    name = plain_name(key)
    close = get_close_matches(name, BY_NAME, n=1, cutoff=FAMILIAR) if len(name) > 4 else [name]  # short ones: exactly
    if not close or close[0] not in BY_NAME:
        return ""
    _, keys, note = BY_NAME[close[0]]
    if not keys:
        return f" {note[0].upper()}{note[1:]}"
    explanation = f" ({note})" if note else ""
    available = [k for k in keys[:2] if k in known] or [k for k in keys[2:] if k in known][:2]
    same_group = [k for k in available if k.partition(".")[0] == key.partition(".")[0]]
    if not available:
        return f" Its name here is {keys[0]}{explanation}, {absent}"
    return _question(*(same_group or available)) + explanation


def _by_spelling(key: str, known: Collection[str]) -> str:
    """The key with the same or a similar last part in another group."""
    group, _, leaf = key.rpartition(".")
    leaves: dict[str, list[str]] = {}
    for k in known:
        leaves.setdefault(k.rpartition(".")[2], []).append(k)
    close = get_close_matches(leaf, leaves, n=1, cutoff=ELSEWHERE)
    if not close:
        return ""
    keys = leaves[close[0]]
    nearest = get_close_matches(group, [k.rpartition(".")[0] for k in keys], n=1, cutoff=SIBLING)
    return _question(next((k for k in keys if nearest and k.rpartition(".")[0] == nearest[0]), min(keys, key=len)))


def _question(*keys: str) -> str:
    return f" Did you mean {' or '.join(keys)}?"
