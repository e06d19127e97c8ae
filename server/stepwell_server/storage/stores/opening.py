"""Opens the place that a setting names."""

from __future__ import annotations

from urllib.parse import urlsplit

from stepwell_core.errors import InvalidArgument

from stepwell_server.storage.stores.base import CheckpointStore

SCHEMES = ("s3", "gs", "az", "memory")


def open_store(url: str) -> CheckpointStore:
    """Return the object store of a URL such as `s3://bucket/prefix`.

    Credentials, region and endpoint come from the environment variables that each store's own tools
    read (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...).

    Raises:
        InvalidArgument: It is no such URL, or the package that speaks to such stores is not there.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc or parts.query or parts.fragment:
        raise InvalidArgument(
            "A checkpoint store is s3://bucket/prefix, gs://bucket/prefix or az://container/prefix."
            f" Received: {url[:80]!r}"
        )
    if "@" in parts.netloc:
        raise InvalidArgument(
            "Credentials of a checkpoint store come from the environment, and are no part of its "
            "URL, which is shown in logs"
        )
    try:
        from stepwell_server.storage.stores.objects import ObjectStore
    except ModuleNotFoundError:
        raise InvalidArgument(
            'Object stores need one more package: pip install "stepwell[server,object-stores]"'
        ) from None
    return ObjectStore(url)
