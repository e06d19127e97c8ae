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

    def ask(self, path: str) -> dict[str, Any]:
        """Return what a path answers, 503 included: a server that is not ready says so.

        Raises:
            ConnectionFailed: Nobody is there.
            CertificateRefused: Whoever is there has a certificate that is not trusted.
            UnexpectedAnswer: Somebody else is.
            StepwellError: What the server says.
        """
        import httpx
        from stepwell.errors import (
            CertificateRefused,
            ConnectionFailed,
            UnexpectedAnswer,
            from_problem,
        )
        from stepwell.transport.failures import of_httpx

        try:
            answer = self._client.get(path)
        except httpx.HTTPError as error:
            failure = of_httpx(error)
            if isinstance(failure, CertificateRefused):
                found, _, _ = failure.message.partition(". ")
                raise CertificateRefused(
                    f"{found}. If it is your own, name it, or the authority that made it, in "
                    "SSL_CERT_FILE; the name in the URL must be one of those in it",
                    was_sent=False,
                ) from None
            if "its URL begins with" in failure.message:  # one is there: with TLS, or without
                raise failure from None
            raise ConnectionFailed(
                f"No server answers at {self.url} ({type(error).__name__}). Start one with "
                "`stepwell serve`, or say where it is with --url or STEPWELL_URL"
            ) from None
        try:
            fields = answer.json()
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise UnexpectedAnswer(
                f"What answers at {self.url} is not a Stepwell server. Received: status "
                f"{answer.status_code}"
            )
        if "date" in answer.headers:
            self.now_s = parsedate_to_datetime(answer.headers["date"]).timestamp()
        if answer.is_error and "code" in fields:
            raise from_problem(fields, answer.status_code)
        return fields

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
