"""What the driver says of GPUs, from a driver of the test's own: no machine here has one."""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from services.inference import fingerprint, nvml
from services.inference.nvml import Gpu, GpuCollector, gpus

NOT_FOUND, NO_PERMISSION, NOT_SUPPORTED = 6, 4, 3
GIB = 2**30


@dataclass
class Card:
    """One GPU as the driver has it."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    total: int = 80 * GIB
    used: int = 3 * GIB
    percent: int | None = 25
    """None: it has no utilisation, as a part of a GPU has none."""
    broken: bool = False


@dataclass
class Driver:
    """As much of libnvidia-ml as is asked; every call as ctypes makes it, by reference."""

    cards: Sequence[Card]
    fails_to_begin: bool = False
    open: int = 0
    calls: list[str] = field(default_factory=list)

    def nvmlInit_v2(self) -> int:  # noqa: N802  # the driver's names
        """Begin."""
        self.open += 1
        return 9 if self.fails_to_begin else 0

    def nvmlShutdown(self) -> int:  # noqa: N802
        """End."""
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, number: Any) -> int:  # noqa: N802
        """How many."""
        if self.fails_to_begin:
            return 1
        number._obj.value = len(self.cards)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:  # noqa: N802
        """The handle of one, which is never 0."""
        if self.fails_to_begin or index >= len(self.cards):
            return NOT_FOUND
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: N802
        """The same by UUID."""
        assert isinstance(uuid, bytes)
        found = [index for index, card in enumerate(self.cards) if card.uuid.encode() == uuid]
        if not found:
            return NOT_FOUND
        handle._obj.value = found[0] + 1
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, length: int) -> int:  # noqa: N802
        """Its name, in a buffer that is large enough."""
        card = self._card(handle)
        assert length > len(card.name)
        name.value = card.name.encode("latin-1")
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:  # noqa: N802
        """Total, free, used: in this order."""
        card = self._card(handle)
        if card.broken:
            return NO_PERMISSION
        memory[:] = (card.total, card.total - card.used, card.used)
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any, used: Any) -> int:  # noqa: N802
        """Per cent of the kernels and of the memory's lanes."""
        card = self._card(handle)
        # What is left behind by a call that fails is nothing to rely on.
        percent = 77 if card.percent is None else card.percent
        ctypes.memmove(used, struct.pack("II", percent, 99), 8)
        return NOT_SUPPORTED if card.percent is None else 0

    def _card(self, handle: Any) -> Card:
        assert self.open == 1, "asked before it began, or after it ended"
        return self.cards[handle.value - 1]


TWO = (Card("GPU-aaaa", "A", 16 * GIB, GIB, 50), Card("GPU-bbbb", "B", 8 * GIB, 2 * GIB, 0))
FIRST, SECOND = Gpu("cuda:0", "A", 16 * GIB, GIB, 0.5), Gpu("cuda:1", "B", 8 * GIB, 2 * GIB, 0.0)


@pytest.fixture(autouse=True)
def _nothing_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def install(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Driver:
    """Have the library of the driver be this one; all else of ctypes is as it is."""

    def library(name: str) -> Driver:
        assert name == nvml.LIBRARY
        return driver

    seen = SimpleNamespace(**{**vars(ctypes), "CDLL": library})
    monkeypatch.setattr(nvml, "ctypes", seen)
    return driver


def visible(monkeypatch: pytest.MonkeyPatch, devices: str) -> list[Gpu]:
    """What is there where the environment says so."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    return gpus()


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-driver.so.1")
    assert gpus() == []
    assert list(GpuCollector().collect()) == []


def test_a_driver_without_a_gpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install(monkeypatch, Driver(()))
    assert gpus() == []
    assert list(GpuCollector().collect()) == []
    assert driver.open == 0


def test_a_driver_that_does_not_begin_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose module and library are of different versions."""
    install(monkeypatch, Driver(TWO, fails_to_begin=True))
    assert gpus() == []


def test_each_gpu_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install(monkeypatch, Driver(TWO))
    assert gpus() == [FIRST, SECOND]
    assert driver.open == 0, "the driver is let go of"


def test_the_driver_is_let_go_of_though_reading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install(monkeypatch, Driver([Card("GPU-a", name="no UTF-8: \xff")]))
    with pytest.raises(UnicodeDecodeError):
        gpus()
    assert driver.open == 0


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("0,1", ["A", "B"]),
        ("1,0", ["B", "A"]),
        ("1", ["B"]),
        ("GPU-bbbb", ["B"]),
        ("GPU-bbbb,0", ["B", "A"]),
        ("-1", []),
        ("7", []),
        ("GPU-cccc", []),
        ("NoDevFiles", []),
    ],
)
def test_only_the_devices_that_cuda_sees_in_cudas_order(
    monkeypatch: pytest.MonkeyPatch, devices: str, expected: list[str]
) -> None:
    """cuda:0 is the first of them, whatever number the driver gives it."""
    install(monkeypatch, Driver(TWO))
    found = visible(monkeypatch, devices)
    assert [(gpu.device, gpu.name) for gpu in found] == [
        (f"cuda:{index}", name) for index, name in enumerate(expected)
    ]


def test_an_empty_list_hides_all(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver(TWO))
    assert visible(monkeypatch, "") == []


def test_a_device_without_utilisation_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver([Card("MIG-1", percent=None)]))
    (gpu,) = visible(monkeypatch, "MIG-1")
    assert (gpu.device, gpu.busy, gpu.used_bytes) == ("cuda:0", 0.0, 3 * GIB)


def test_a_device_that_may_not_be_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver([Card("GPU-a", broken=True), TWO[1]]))
    assert gpus() == [SECOND]


def test_the_fingerprint_names_card_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver(TWO))
    assert fingerprint.gpu_name("cuda:1") == "B 8192 MiB"
    assert fingerprint.gpu_name("cuda:2") == "unknown"


def test_metrics_are_asked_for_when_they_are_scraped(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card("GPU-a", "A", 16 * GIB, GIB, 50)
    driver = install(monkeypatch, Driver([card, TWO[1]]))
    registry = CollectorRegistry()
    registry.register(GpuCollector())

    def value(name: str, device: str) -> float | None:
        return registry.get_sample_value(f"gristmill_gpu_{name}", {"device": device})

    assert [value("memory_bytes", f"cuda:{n}") for n in range(2)] == [16 * GIB, 8 * GIB]
    assert [value("memory_used_bytes", f"cuda:{n}") for n in range(2)] == [GIB, 2 * GIB]
    assert [value("utilization_ratio", f"cuda:{n}") for n in range(2)] == [0.5, 0.0]
    card.used, card.percent = 4 * GIB, 100
    assert value("memory_used_bytes", "cuda:0") == 4 * GIB
    assert value("utilization_ratio", "cuda:0") == 1.0
    written = generate_latest(registry).decode()
    assert written.count("# TYPE gristmill_gpu_") == 3
    assert 'device="cuda:1"' in written
    driver.cards = ()
    assert generate_latest(registry) == b"", "a metric without a device is none"
