"""The dashboard: a page and its files, for everyone; what it shows it asks for with a token."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response
from stepwell_core.errors import NotFound

from stepwell_server.dashboard import HEADERS, StaticFile, shared_files

router = APIRouter(tags=["dashboard"], include_in_schema=False)

LOOKING = ["GET", "HEAD"]
"""HEAD is for watchdogs and proxies: the headers of GET; the protocol leaves the body out."""


@router.api_route("/", methods=LOOKING)
async def get_page(request: Request) -> Response:
    """Return the page; asked for anew each time, so that an upgrade is seen at once."""
    files = await asyncio.to_thread(shared_files)
    return _sent(request, files.index, "no-cache")


@router.api_route("/dashboard/{version}/{file}", methods=LOOKING)
async def get_file(request: Request, version: str, file: str) -> Response:
    """Return one of the page's files; a browser may keep it for ever."""
    files = await asyncio.to_thread(shared_files)
    found = await asyncio.to_thread(files.find, version, file)
    if found is None:
        raise NotFound("The dashboard has no such file in this version. Load the page again")
    return _sent(request, found, "public, max-age=31536000, immutable")


def _sent(request: Request, file: StaticFile, caching: str) -> Response:
    headers = {**HEADERS, "Cache-Control": caching}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(file.body, headers=headers, media_type=file.media_type)
    headers["Content-Encoding"] = "gzip"
    return Response(file.packed, headers=headers, media_type=file.media_type)
