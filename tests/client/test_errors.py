"""Tests of `stepwell.errors`: problem documents become exceptions, one class a code."""

from __future__ import annotations

import pickle

import pytest
import stepwell
from stepwell.errors import ClientClosed, TransportError, from_problem
from stepwell_core import errors as core_errors
from stepwell_core.errors import StepwellError, every_error

CORE = [cls for cls in every_error() if cls.__module__ == core_errors.__name__]
TRANSPORT = [ClientClosed, *every_error(TransportError)]
"""What the client alone says."""


@pytest.mark.parametrize("cls", CORE, ids=lambda cls: cls.code)
def test_every_code_comes_back_as_its_class_with_message_and_details(cls):
    """What a server's exception says is what the client raises."""
    document = {"type": "urn:x", "title": "T", "detail": "Why.", "code": cls.code, "expected": 3}

    error = from_problem(document, 409)

    assert type(error) is cls
    assert error.message == str(error) == "Why."
    assert error.details == {"code": cls.code, "expected": 3, "status": 409}


def test_every_class_has_a_code_of_its_own():
    """No two classes of core and client share a code, so the way back is unique."""
    classes = CORE + TRANSPORT

    assert len({cls.code for cls in classes}) == len(classes)


@pytest.mark.parametrize("cls", [*CORE, *TRANSPORT], ids=lambda cls: cls.code)
def test_every_error_can_be_caught_by_a_name_in_stepwell_errors(cls):
    """`except stepwell.errors.Fenced` works for every class, and all of them are listed."""
    assert getattr(stepwell.errors, cls.__name__) is cls
    assert cls.__name__ in stepwell.errors.__all__


@pytest.mark.parametrize(
    ("status", "branch"),
    [
        (401, "unauthenticated"),
        (403, "forbidden"),
        (404, "not_found"),
        (409, "conflict"),
        (422, "invalid_input"),
        (503, "unavailable"),
        (500, "error"),
    ],
)
def test_a_code_of_a_newer_server_gives_the_branch_of_its_status(status, branch):
    """A client that does not know a code still knows whether to try again; the code is kept."""
    error = from_problem({"detail": "New.", "code": "not_invented_yet"}, status)

    assert error.code == branch
    assert error.details["code"] == "not_invented_yet"


@pytest.mark.parametrize(
    "code", ["client_closed", "connection_failed", "timed_out", "transport_error"]
)
def test_a_server_cannot_pretend_that_the_connection_failed(code):
    """What happens on the way is for the client alone to say."""
    error = from_problem({"detail": "Hm.", "code": code}, 500)

    assert not isinstance(error, ClientClosed | TransportError)


def test_members_with_awkward_names_do_no_harm():
    """A proxy's JSON may have `message` or `self` in it."""
    error = from_problem({"message": "m", "self": 1, "was_sent": True, "code": "fenced"}, 409)

    assert isinstance(error, stepwell.errors.Fenced)
    assert error.message == "HTTP status 409"


@pytest.mark.parametrize("cls", [*CORE, *TRANSPORT], ids=lambda cls: cls.code)
def test_every_error_goes_through_pickle(cls):
    """A worker process can hand its exception to its parent."""
    error = cls("Why.", expected=3)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is cls
    assert (copy.message, copy.details) == ("Why.", {"expected": 3})


def test_was_sent_goes_through_pickle_too():
    """Whether the server may have it is not lost between processes."""
    error = stepwell.errors.ConnectionFailed("No.", was_sent=False)

    assert pickle.loads(pickle.dumps(error)).was_sent is False


def test_the_docstring_draws_the_tree_as_it_is():
    """The classes under `TransportError` are the leaves of the drawing."""
    drawn = stepwell.errors.__doc__.partition("TransportError")[2]

    for cls in TransportError.__subclasses__():
        assert f"── {cls.__name__} " in drawn
        assert cls.__bases__ == (TransportError,)
    assert issubclass(TransportError, StepwellError)
