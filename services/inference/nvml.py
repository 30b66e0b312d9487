"""What the driver of NVIDIA's GPUs says of them, where there is one. Knows no model.

Through the library that comes with the driver, and not by nvidia-smi: a process may be confined
to start no other program.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device that this process may use."""

    device: str
    """As "cuda:0"."""
    name: str
    memory_bytes: int
    used_bytes: int
    busy: float
    """The share of the last moments in which a kernel ran, 0 to 1."""


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def gpus() -> list[Gpu]:
    """The devices that this process may use; none where there is no driver."""
    with _driver() as driver:
        if driver is None:
            return []
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        chosen = [str(number) for number in range(_count(driver))]
        if visible is not None:  # set and empty hides all of them
            chosen = [one.strip() for one in visible.split(",") if one.strip()]
        read = (_read(driver, f"cuda:{index}", one) for index, one in enumerate(chosen))
        return [gpu for gpu in read if gpu is not None]


class GpuCollector(Collector):
    """Memory and utilisation of each GPU, asked for when they are scraped."""

    def collect(self) -> Iterable[Metric]:
        """No metric at all where there is no GPU."""
        used = GaugeMetricFamily("gristmill_gpu_memory_used_bytes", "In use.", labels=["device"])
        total = GaugeMetricFamily("gristmill_gpu_memory_bytes", "In all.", labels=["device"])
        busy = GaugeMetricFamily(
            "gristmill_gpu_utilization_ratio",
            "Share of the last moments in which a kernel ran.",
            labels=["device"],
        )
        found = gpus()
        for gpu in found:
            used.add_metric([gpu.device], gpu.used_bytes)
            total.add_metric([gpu.device], gpu.memory_bytes)
            busy.add_metric([gpu.device], gpu.busy)
        return (used, total, busy) if found else ()


@contextmanager
def _driver() -> Iterator[ctypes.CDLL | None]:
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        yield None
        return
    driver.nvmlInit_v2()
    try:
        yield driver
    finally:
        driver.nvmlShutdown()


def _count(driver: ctypes.CDLL) -> int:
    number = ctypes.c_uint()
    return 0 if driver.nvmlDeviceGetCount_v2(ctypes.byref(number)) else number.value


def _read(driver: ctypes.CDLL, device: str, chosen: str) -> Gpu | None:
    handle = ctypes.c_void_p()
    name, memory = ctypes.create_string_buffer(96), (ctypes.c_ulonglong * 3)()
    if chosen.isdecimal():
        failed = driver.nvmlDeviceGetHandleByIndex_v2(int(chosen), ctypes.byref(handle))
    else:
        failed = driver.nvmlDeviceGetHandleByUUID(chosen.encode(), ctypes.byref(handle))
    failed = failed or driver.nvmlDeviceGetName(handle, name, len(name))
    failed = failed or driver.nvmlDeviceGetMemoryInfo(handle, memory)
    if failed:
        return None
    used = _Utilization()
    # A part of a GPU (MIG) has no utilisation of its own.
    if driver.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(used)):
        used.gpu = 0
    total, _, taken = memory
    return Gpu(device, name.value.decode(), total, taken, used.gpu / 100)
