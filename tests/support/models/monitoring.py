"""A monitor that remembers what was reported to it."""

from __future__ import annotations

from vaerun.tracking.monitor import Monitor


class RecordingMonitor(Monitor):
    """Keeps every call's argument, in order."""

    wants_forecast = True

    def __init__(self) -> None:
        super().__init__()
        self.advanced: list[int] = []
        self.forecasts: list[float] = []
        self.warnings: list[str] = []

    def advance(self, count: int) -> None:
        self.advanced.append(count)

    def forecast(self, seconds: float) -> None:
        self.forecasts.append(seconds)

    def warn(self, line: str) -> None:
        self.warnings.append(line)
