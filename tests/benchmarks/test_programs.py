"""Programs that take turns: what they say, and what becomes of one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.programs import Program, ProgramFailed
from benchmarks.references.raw_socket import RawSocket, as_bytes


def test_a_program_says_what_its_parent_needs_to_know() -> None:
    """Here the port, where bytes go up and come down whole."""
    with Program("references.raw_socket") as program:
        connection = RawSocket(program.facts["port"])
        sent, into = np.arange(256, dtype=np.uint8), np.zeros(256, np.uint8)

        connection.push(as_bytes(sent))
        connection.pull(as_bytes(into))
        connection.close()

    assert np.array_equal(into, sent)


def test_a_program_that_ends_says_why() -> None:
    """Its last words are in the error, and nothing waits for it."""
    with pytest.raises(ProgramFailed, match="no_such_program"):
        Program("no_such_program")
