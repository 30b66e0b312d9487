"""What a process gives up before it opens a model: memory, time, network, programs, files.

Knows no model. Called in the child itself, before it reads its first file, and for good: limits and
system call filters can be tightened and never loosened.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import services
from services.registry.worker.landlock import allow_only

# <linux/prctl.h>, <linux/seccomp.h>, <linux/audit.h> and <linux/bpf_common.h>.
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EACCES
_UNKNOWN = 0x00050000 | errno.ENOSYS
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
_CLONE_3, _CLONE_THREAD = 435, 0x00010000
_PR_SET_DUMPABLE, _CAPABILITIES_V3 = 4, 0x20080522
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32 = 0x40000000
"""From here on stand the same calls again, for programs with short pointers."""

_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/proc", "/sys", "/dev/urandom", "/dev/random"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/os-release", "/etc/passwd"),
)
_WRITABLE = ("/dev/null", "/dev/shm")  # noqa: S108  # OpenMP registers itself there


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of system calls on one kind of processor."""

    audit: int
    clone: int
    refused: tuple[int, ...]
    """socket, execve, execveat, ptrace, process_vm_readv, process_vm_writev, io_uring_setup, bpf,
    mount, kill, pidfd_open, fork, vfork. A process may still end itself: abort uses another."""


_MACHINES = {
    "x86_64": _Machine(
        0xC000003E, 56, (41, 59, 322, 101, 310, 311, 425, 321, 165, 62, 434, 57, 58)
    ),
    "aarch64": _Machine(0xC00000B7, 220, (198, 221, 281, 117, 270, 271, 425, 280, 40, 129, 434)),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the child may use."""

    memory_bytes: int = 8 * 2**30
    """Of data of its own: what is only mapped from files does not count."""
    cpu_s: int = 1800
    file_bytes: int = 32 * 2**30
    """The largest file that it may write."""


def confine(limits: Limits, writable: Iterable[Path] = (), readable: Iterable[Path] = ()) -> None:
    """Give all of it up; OSError where the kernel cannot hold this process to it.

    Of files there stay the interpreter with its packages, what the machine says of itself, and
    those named; where the kernel has no Landlock, all.
    """
    for what, most in (
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    own = [Path(sys.prefix), Path(sys.base_prefix), Path(services.__path__[0])]
    packages = [Path(place) for place in sys.path if place.endswith("-packages")]
    system = [Path(place) for place in _SYSTEM]
    allow_only([*own, *packages, *system, *readable], [*writable, *map(Path, _WRITABLE)])
    _drop_capabilities()
    _filter_calls()


def keep_from_children() -> None:
    """Close this process's memory and environment to processes of the same user."""
    _prctl(_PR_SET_DUMPABLE, 0)


def _drop_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(struct.pack("=Ii", _CAPABILITIES_V3, 0), bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")


def _filter_calls() -> None:
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(f"no filter of system calls is known for {platform.machine()}")
    program = _program(machine)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, padding, and where they are.
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    place = ctypes.create_string_buffer(filter_, len(filter_))
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(place))


def _program(machine: _Machine) -> bytes:
    """Classic BPF: no socket, no process but threads of this one, no reaching into others."""
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, machine.audit),
        (_GIVE, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        (_GIVE, 0, 0, _REFUSE),
    ]
    for number in machine.refused:
        steps += [(_EQUAL, 0, 1, number), (_GIVE, 0, 0, _REFUSE)]
    steps += [
        # Its flags cannot be looked at; without it threads begin by the call that can.
        (_EQUAL, 0, 1, _CLONE_3),
        (_GIVE, 0, 0, _UNKNOWN),
        (_EQUAL, 1, 0, machine.clone),
        (_GIVE, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_GIVE, 0, 0, _REFUSE),
        (_GIVE, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _prctl(option: int, first: int, second: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(value) for value in (first, second, 0, 0)]
    if libc.prctl(option, *arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
