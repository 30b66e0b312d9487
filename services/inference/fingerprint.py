"""What a measured time depends on besides the model, in one line; knows no model and no service.

Two processes that run a model in the same way on the same host have the same fingerprint, in
whatever order their files were read or their packages imported.
"""

import ctypes
import os
from pathlib import Path

from services.inference.backend import Backend

CPUINFO = Path("/proc/cpuinfo")
CGROUPS = Path("/sys/fs/cgroup")
# x86 names the model, ARM the part.
CPU_KEYS = ("model name", "CPU part")
NVML = "libnvidia-ml.so.1"


def fingerprint(backend: Backend, instances: int) -> str:
    """Device, its name, the cores this process may use, threads, instances and the runtime."""
    name = cpu_name() if backend.device == "cpu" else gpu_name(backend.device)
    threads = f"{instances} x {backend.threads} threads"
    runtime = f"{backend.name} {backend.version}"
    return "; ".join((backend.device, name, f"{cores():g} cores", threads, runtime))


def cores() -> float:
    """Cores that this process may use: by its affinity, and by the quotas of its control groups."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def _quotas() -> list[float]:
    try:
        # Version 2 has one line, "0::/path"; the limits of all groups above hold too.
        inside = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    except OSError:
        return []
    group, found = CGROUPS / inside, []
    for folder in (group, *group.parents):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            found.append(int(quota) / int(period))
    return found


def cpu_name() -> str:
    """The processor as the kernel names it."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2] for line in lines if line.startswith(CPU_KEYS)]
    return " ".join(named[0].split()) if named else os.uname().machine


def gpu_name(device: str) -> str:
    """The name and the memory of a device such as "cuda:0", as its driver has them."""
    index = int(device.rpartition(":")[2])
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    try:
        # Not by nvidia-smi: the worker measures where it may start no other program.
        driver = ctypes.CDLL(NVML)
    except OSError:
        return "unknown"
    driver.nvmlInit_v2()
    try:
        return _described(driver, visible[index] if index < len(visible) else str(index))
    finally:
        driver.nvmlShutdown()


def _described(driver: ctypes.CDLL, chosen: str) -> str:
    handle = ctypes.c_void_p()
    name, memory = ctypes.create_string_buffer(96), (ctypes.c_ulonglong * 3)()
    if chosen.isdecimal():
        failed = driver.nvmlDeviceGetHandleByIndex_v2(int(chosen), ctypes.byref(handle))
    else:
        failed = driver.nvmlDeviceGetHandleByUUID(chosen.encode(), ctypes.byref(handle))
    failed = failed or driver.nvmlDeviceGetName(handle, name, len(name))
    failed = failed or driver.nvmlDeviceGetMemoryInfo(handle, memory)
    return "unknown" if failed else f"{name.value.decode()} {memory[0] // 2**20} MiB"
