"""What a measured time depends on besides the model, in one line; knows no model and no service.

Two processes that run a model in the same way on the same host have the same fingerprint, in
whatever order their files were read or their packages imported.
"""

import os
from pathlib import Path

from services.inference import nvml
from services.inference.backend import Backend

CPUINFO = Path("/proc/cpuinfo")
CGROUPS = Path("/sys/fs/cgroup")
# x86 names the model, ARM the part.
CPU_KEYS = ("model name", "CPU part")


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
    for gpu in nvml.gpus():
        if gpu.device == device:
            return f"{gpu.name} {gpu.memory_bytes // 2**20} MiB"
    return "unknown"
