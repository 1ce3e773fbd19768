"""glibc's heap, told to give back what is freed.

It otherwise comes to keep freed blocks of up to 32 MiB for later, in pieces that the next tensors do not fit into: an
update of a 135 M model peaked at 1.6 times the memory it needs (`make bench-memory`, "blocks returned"). Blocks of a
mebibyte and more then come from the system and go back to it; that costs page faults, which large matrix products do
not notice and small ones do.
"""

import ctypes
import platform

from gspo.threads import SMALL

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def returns_blocks(parameters: int) -> bool:
    """Whether runs of a model of so many parameters do so."""
    return parameters >= SMALL and platform.libc_ver()[0] == "glibc"


def return_blocks() -> None:
    """For the rest of this process; `MALLOC_MMAP_THRESHOLD_` in the environment does the same from its start."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 2**20)
    libc.mallopt(_TRIM_THRESHOLD, 2**22)
