"""Packages that declare themselves as plug-ins, and the module's former place."""

from __future__ import annotations

from importlib import metadata

import pytest

import vaerun
from vaerun.config import plugins


def test_the_entry_point_group_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(*, group: str) -> list[metadata.EntryPoint]:
        return [metadata.EntryPoint("mine", "my_package.parts:register", group)] if group == "vaerun.plugins" else []

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    assert "my_package" in plugins._declared.__wrapped__()


def test_the_former_module_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="import trust from vaerun$"):
        from vaerun.plugins import trust
    assert trust is plugins.trust is vaerun.trust
    with pytest.warns(DeprecationWarning, match="import trusted from vaerun.config.plugins$"):
        from vaerun.plugins import trusted
    assert trusted is plugins.trusted
    with pytest.raises(ImportError):
        from vaerun.plugins import nothing_of_the_kind  # noqa: F401
