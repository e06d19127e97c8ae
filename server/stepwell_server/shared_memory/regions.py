"""Regions: memory that other processes can be given, and that they cannot pull away.

A region is a sealed memfd: no file, no name, gone with the last process that maps it. The seals
keep whoever holds its descriptor from truncating it, which would kill the other side with SIGBUS,
and all its bytes are allocated at once, so that writing into it cannot run out of memory.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import sys
import weakref

import structlog
from stepwell_core.errors import NoSharedMemory
from stepwell_core.layout import Arenas, Array, Layout
from stepwell_core.placement import extent, place

from stepwell_server.leases import Lease

F_SEAL_FUTURE_WRITE = 0x0010
"""Nobody can map it writable from now on; Linux 5.1, not yet in Python's `fcntl`."""

log = structlog.get_logger("stepwell")

_serials = itertools.count(1)


class Region:
    """Sealed memory, mapped and writable here.

    Args:
        nbytes: Its size, at least 1.
        is_writable_elsewhere: Whether other processes may write into it too.

    Attributes:
        serial: Names it within this server.
        descriptor: To be sent to another process; closed when the region is collected.
        memory: Its bytes; whoever keeps a view of them keeps the memory.

    Raises:
        NoSharedMemory: There is not enough memory, or the kernel has no sealed memfds.
    """

    def __init__(self, nbytes: int, *, is_writable_elsewhere: bool) -> None:
        self.serial = next(_serials)
        self.nbytes = nbytes
        try:
            self._allocate(nbytes, is_writable_elsewhere)
        except OSError as error:
            raise NoSharedMemory(
                f"There are no {nbytes} bytes of shared memory ({error.strerror}); send tensors "
                "instead"
            ) from None

    def _allocate(self, nbytes: int, is_writable_elsewhere: bool) -> None:
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, f"{sys.platform} has no sealed memory")
        self.descriptor = os.memfd_create("stepwell", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        os.posix_fallocate(self.descriptor, 0, nbytes)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._mapping = mmap.mmap(self.descriptor, nbytes, flags=flags)
        self.memory = memoryview(self._mapping)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        if not is_writable_elsewhere:
            seals |= F_SEAL_FUTURE_WRITE
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)

    def lend(self, lease: Lease) -> None:
        """Release a lease when the last view of the memory is gone."""
        lease.lend()
        weakref.finalize(self._mapping, lease.release_soon)


class RegionArenas(dict[str, Array]):
    """Arenas that lie in a region, which others may read.

    Args:
        layout: Of the arenas.

    Raises:
        NoSharedMemory: See `Region`.
    """

    def __init__(self, layout: Layout) -> None:
        self.region = Region(extent(layout), is_writable_elsewhere=False)
        super().__init__(place(layout, self.region.memory))


def shared_arenas(layout: Layout) -> Arenas:
    """Return new arenas in a region, or in plain memory if there can be no region."""
    try:
        return RegionArenas(layout)
    except NoSharedMemory as error:
        log.warning("no_shared_memory", error=error.message, bytes=layout.nbytes)
        return layout.new_arenas(None)
