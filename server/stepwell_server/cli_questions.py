"""What commands ask a server that only look at it: at once, or with one sentence why not.

A worker's client is patient with a server that is not there; somebody who asks how it is wants to
know that it is not.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # not needed by a server that starts
    pass


ANSWER_S = 10.0
"""For one answer: a list of models waits for a step of each."""


class Questions:
    """A connection to a server. A context manager.

    Args:
        url: Of the server; None takes what the environment says. So does the token.

    Attributes:
        url: Of the server.
        now_s: Of the server's clock when it answered last, in seconds since 1970.
    """

    def __init__(self, url: str | None) -> None:
        from stepwell.endpoint import Endpoint
        from stepwell.transport.over_httpx import new_client

        endpoint = Endpoint.find(url, None, None)
        self.url = endpoint.name
        self.now_s = time.time()
        self._client = new_client(endpoint)
        self._client.headers["Accept"] = "application/json"
        self._client.timeout = ANSWER_S

    def ask(self, path: str, *fields: str) -> dict[str, Any]:
        """Return what a path answers, 503 included: a server that is not ready says so.

        Args:
            path: Of the server.
            fields: What the answer has if it is a Stepwell server's.

        Raises:
            ConnectionFailed: Nobody is there.
            CertificateRefused: Whoever is there has a certificate that is not trusted.
            TimedOut: It does not answer.
            UnexpectedAnswer: Somebody else is there.
            StepwellError: What the server says.
        """
        import httpx
        from stepwell.errors import UnexpectedAnswer, from_problem
        from stepwell.transport.failures import of_httpx

        try:
            answer = self._client.get(path)
        except httpx.HTTPError as error:
            raise of_httpx(error, self.url) from None
        try:
            found = answer.json()
        except ValueError:
            found = None
        if isinstance(found, dict):
            if "date" in answer.headers:
                self.now_s = parsedate_to_datetime(answer.headers["date"]).timestamp()
            if answer.is_error and "code" in found:
                raise from_problem(found, answer.status_code)
            if all(field in found for field in fields):
                return found
        raise UnexpectedAnswer(
            f"What answers at {self.url} is not a Stepwell server, or an older one. Received: "
            f"status {answer.status_code}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
