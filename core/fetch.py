"""Short questions to daemons over HTTP; silence is an answer."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from rephub.core.errors import RephubError, UnavailableError, from_dict

DOCUMENT_BYTES_MAX = 64 << 20
"""The catalogue of thousands of volumes fits in."""


async def fetch(url: str, seconds: float) -> dict[str, Any] | None:
    """The JSON document at a URL; None if it does not come in time or is something else.

    Args:
        url: of a daemon; an empty host gives None.
        seconds: for all of it.
    """
    try:
        return await fetch_or_raise(url, seconds)
    except RephubError:
        return None


async def fetch_or_raise(url: str, seconds: float) -> dict[str, Any]:
    """The JSON document at a URL.

    Raises:
        UnavailableError: no answer in time.
        RephubError: what the daemon answers as `{"error": …}`.
    """
    limits = aiohttp.ClientTimeout(total=seconds)
    try:
        async with aiohttp.ClientSession(timeout=limits) as session, session.get(url) as response:
            text = (await response.content.read(DOCUMENT_BYTES_MAX)).decode()
            while not response.content.at_eof():
                text += (await response.content.read(DOCUMENT_BYTES_MAX)).decode()
            document = json.loads(text)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
        raise UnavailableError(
            f"no answer from {url}: {exc or type(exc).__name__}",
            hint="`rephub status` says which part is down",
        ) from exc
    if not isinstance(document, dict):
        raise UnavailableError(f"no document at {url}", hint="is something else listening there?")
    if "error" in document:
        raise from_dict(document["error"])
    return document
