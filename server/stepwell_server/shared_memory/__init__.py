"""The same-host transport, server side: memory that a worker's process sees too.

A worker on the server's host need not send tensors anywhere. It is given a *region* for its
gradients, and reads the parameters where the server keeps them. Only messages of control travel, as
HTTP over the server's Unix socket; the regions' file descriptors come along with the answers.

    regions.py     sealed memory without a file, and arenas in it
    connection.py  what one connection shares; all of it is let go of when the connection ends
    listener.py    the Unix socket, and who may use it

A connection's end is the only clean-up there is: the kernel closes a dead worker's sockets.
"""

from stepwell_server.shared_memory.connection import EXTENSION, ConnectionMemory
from stepwell_server.shared_memory.regions import Region, RegionArenas, shared_arenas

__all__ = ["EXTENSION", "ConnectionMemory", "Region", "RegionArenas", "shared_arenas"]
