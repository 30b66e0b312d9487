"""Gives large buffers back to the system when they are let go of; knows nothing of what is in them.

glibc keeps what is below a threshold that it raises by itself, to 32 MiB: a wave of large bodies
would stay with the process.
"""

import ctypes

LARGE_BYTES = 128 * 1024
_M_MMAP_THRESHOLD = -3


def give_back_large() -> bool:
    """Fix the threshold; False where the C library has none."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))
