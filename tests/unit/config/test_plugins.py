"""Packages that declare themselves as plug-ins."""

from __future__ import annotations

from importlib import metadata

import pytest

from vaerun.config import plugins


def test_the_entry_point_group_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(*, group: str) -> list[metadata.EntryPoint]:
        return [metadata.EntryPoint("mine", "my_package.parts:register", group)] if group == "vaerun.plugins" else []

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    assert "my_package" in plugins._declared.__wrapped__()
