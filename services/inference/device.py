"""How busy each device is: the time in which at least one batch ran on it. Knows no model."""

import threading
import time
from types import TracebackType

from services.runtime import metrics


class DeviceClock:
    """Runs while anything runs on the device; from any thread."""

    def __init__(self, device: str) -> None:
        self._busy = metrics.DEVICE_BUSY.labels(device)
        self._lock = threading.Lock()
        self._running = 0
        self._since = 0.0

    def __enter__(self) -> None:
        self._count(1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._running:
                self._busy.inc(now - self._since)
            self._since = now
            self._running += change


_CLOCKS: dict[str, DeviceClock] = {}


def clock(device: str) -> DeviceClock:
    """The clock of a device: one for all models on it."""
    return _CLOCKS.setdefault(device, DeviceClock(device))
