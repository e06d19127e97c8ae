"""Gradients that are being received, as signs of life of who sends them."""

from __future__ import annotations

from typing import Protocol

from stepwell_core.errors import StepwellError
from stepwell_core.membership import Membership


class Sender(Protocol):
    """Where a gradient comes from: the body of a request."""

    @property
    def silent_since(self) -> float | None:
        """Since when it could have sent something and did not, by the event loop's clock.

        None if it is the server that does not read, or has it all.
        """

    def give_up(self, error: StepwellError) -> None:
        """Wait no longer for the rest, and answer with an error."""


class Sending:
    """A gradient that is being received.

    Args:
        membership: Of the model.
        worker: Whose it is.
        epoch: Of its session.
        sender: Where it comes from; None if it is the server alone that has to do with it now.
        now: The time.

    Attributes:
        worker: As above.
        epoch: As above.
    """

    def __init__(
        self, membership: Membership, worker: str, epoch: int, sender: Sender | None, now: float
    ) -> None:
        self.worker, self.epoch = worker, epoch
        self._membership = membership
        self._sender = sender
        self._is_over = False
        membership.sends(worker, epoch, now)

    def listen(self, now: float) -> None:
        """Note the last sign of life: when bytes came, or now where the server keeps it waiting."""
        silent_since = None if self._sender is None else self._sender.silent_since
        self._membership.seen(
            self.worker, self.epoch, now if silent_since is None else silent_since
        )

    def cut(self, error: StepwellError) -> None:
        """Wait for it no longer: its session has ended."""
        if self._sender is not None:
            self._sender.give_up(error)

    def end(self, now: float, *, whole: bool) -> None:
        """Note that it has come, or will not; a second call does nothing."""
        if not self._is_over:
            self._is_over = True
            if self._sender is not None and not whole:
                self.listen(now)
            self._membership.sent(self.worker, self.epoch, now, whole=whole)
