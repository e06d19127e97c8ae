"""The naive path; see `benchmarks.references.naive_http`.

python -m benchmarks.peers.naive_http SIZE
"""

from __future__ import annotations

import sys

import fastapi

from benchmarks import adam, turns
from benchmarks.programs import Program
from benchmarks.references.naive_http import NaiveClient


def main(size: int) -> None:
    with Program("references.naive_http", size) as server:
        client, gradient = NaiveClient(server.facts["port"]), adam.gradient(size)

        def push() -> None:
            client.push(gradient)

        adam.check(push, client.pull, gradient)
        timed = {"push": turns.timed(push), "pull": turns.timed(client.pull)}
        turns.take(timed, version=fastapi.__version__)
        client.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
