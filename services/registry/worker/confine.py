"""What a process gives up before it opens a model: memory, time, the network, other programs.

Knows no model. Called in the child itself, before it reads its first file, and for good: limits and
system call filters can be tightened and never loosened.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
from dataclasses import dataclass

# <linux/prctl.h>, <linux/seccomp.h>, <linux/audit.h> and <linux/bpf_common.h>.
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EACCES
_LOAD, _EQUAL, _AT_LEAST, _GIVE = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_AF_UNIX = 1
_X32 = 0x40000000
"""From here on stand the same calls again, for programs with short pointers."""


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of system calls on one kind of processor."""

    audit: int
    socket: int
    refused: tuple[int, ...]
    """execve, execveat, ptrace, process_vm_readv, process_vm_writev, io_uring_setup, bpf, mount."""


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 41, (59, 322, 101, 310, 311, 425, 321, 165)),
    "aarch64": _Machine(0xC00000B7, 198, (221, 281, 117, 270, 271, 425, 280, 40)),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the child may use."""

    memory_bytes: int = 8 * 2**30
    """Of data of its own: what is only mapped from files does not count."""
    cpu_s: int = 1800
    file_bytes: int = 32 * 2**30
    """The largest file that it may write."""


def confine(limits: Limits) -> None:
    """Give all of it up; OSError where the kernel cannot hold this process to it."""
    for what, most in (
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))
    _filter_calls()


def _filter_calls() -> None:
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(f"no filter of system calls is known for {platform.machine()}")
    program = _program(machine)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, padding, and where they are.
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    place = ctypes.create_string_buffer(filter_, len(filter_))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(place))


def _program(machine: _Machine) -> bytes:
    """Classic BPF: sockets only of the family unix, no other program, no reaching into others."""
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
        (_EQUAL, 1, 0, machine.socket),
        (_GIVE, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_EQUAL, 1, 0, _AF_UNIX),
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
