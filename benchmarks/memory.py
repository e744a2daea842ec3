"""Free memory that is really there, so that who writes to it first pays nothing that the others do not.

A virtual machine may give its free memory back to the host at once, in pieces of 2 MiB, and gets it again page by page
when it is written to: at a sixth of the speed, where this was measured. Files that are made, removed and made again,
as they are here all the time, then take now this long and now that.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 12 << 30
"""More is not used at a time."""
EVERY = 64 * mmap.PAGESIZE
"""Of so many bytes one page is held: no piece in between is large enough to be given back."""


@contextmanager
def backed() -> Iterator[None]:
    """Half of the free memory stays the machine's own while this lasts; nearly all of it is free."""
    size = min(MOST, os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE // 2) // EVERY * EVERY
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1
        for start in range(0, size, EVERY):
            memory.madvise(mmap.MADV_DONTNEED, start + mmap.PAGESIZE, EVERY - mmap.PAGESIZE)
        yield
