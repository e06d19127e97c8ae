"""What has to be so on a machine for a server to run well there; looked at, and never changed.

Each check returns what it found, and what to do about it if that is not good. *failed* means that a
server would not start or not keep what it promises, *warning* that it would be slow or soon have no
room. The only thing that is written is a file without a name in the data folder, to time the disk.

    finding.py      what a check says
    machine.py      packages, memory, descriptors, kernels, clock
    data_folder.py  whose it is, and the disk
    address.py      the port, and who may come in
"""

from __future__ import annotations

from collections.abc import Iterator

from stepwell_server.doctor.address import check_address
from stepwell_server.doctor.data_folder import check_data_folder
from stepwell_server.doctor.finding import Finding
from stepwell_server.doctor.machine import check_machine
from stepwell_server.settings import Settings

__all__ = ["Finding", "examine"]


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield what each check finds, as it finds it; takes some seconds on a slow disk.

    Args:
        settings: With which a server would start here.
    """
    yield from check_machine(settings)
    yield from check_data_folder(settings)
    yield from check_address(settings)
