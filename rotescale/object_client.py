"""Connections to object stores, how long they are tried, and what is said when they fail. No torch.

Every request is repeated for about two minutes where the store answers 5xx, drops the connection or
is slow. What is then left is told apart: a StorageUnavailableError will pass, so whoever runs the
workers starts them again; any other StorageError is the user's to mend.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from rotescale.errors import StorageError, StorageUnavailableError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Answer = TypeVar("Answer")

SCHEMES = ("s3", "gs")
PASSED_ON = ("AWS_", "GOOGLE_", "ROTESCALE_LOCAL")
"""Beginnings of the environment variables that workers need: how stores are opened, and where a
machine's own folder is."""

MAX_RETRIES = 12
RETRY_SECONDS = 120.0
"""A fail-over takes up to a minute, a save may take 30; a request's signature holds for 5."""
_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 10.0
_CONNECT_SECONDS = 10.0
_REQUEST_SECONDS = 60.0
"""No request carries more than about 16 MiB, so a link of 0.3 MB/s is still fast enough."""

_REQUESTS_AT_ONCE = 8
_PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between tries of our own, of what obstore does not repeat by itself."""
_TRIED = re.compile(
    r"in ([\d.]+)(ms|µs|s), after (\d+) retries, max_retries: (\d+), retry_timeout: ([\d.]+)s"
)
"""What obstore says of a request that it has repeated, whatever then made it give up."""
_UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
_CONFLICT = "409"
_PASSING_STATUS = ("408", _CONFLICT, "425", "429")
_STATUS = re.compile(r"status code: (\d{3})")
_METADATA_SERVICES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")


class BrokenAnswerError(StorageUnavailableError):
    """obstore has not tried again: an answer broke off, or is missing, for what may be repeated."""


class PastTheEndError(StorageError):
    """A range begins where the object has ended."""


@contextmanager
def explained(place: str, *, writing: bool = False) -> Iterator[None]:
    """Turn what the store refuses into an error that names URL and remedy."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        if writing or "NoSuchBucket" in str(error):
            raise _explain(place, error) from None
        raise FileNotFoundError(errno.ENOENT, "no such object", place) from None
    except (BaseError, OSError) as error:
        raise _explain(place, error) from None


def patiently(place: str, ask: Callable[[], Answer], *, writing: bool = False) -> Answer:
    """What ``ask`` returns, explained where it fails; asked again where the answer broke off.

    ``ask`` must be fit to be repeated after it was carried out.
    """
    for pause in _PAUSES:
        try:
            with explained(place, writing=writing):
                return ask()
        except BrokenAnswerError:
            time.sleep(random.uniform(0.5, 1.0) * pause)
    with explained(place, writing=writing):
        return ask()


@functools.lru_cache(maxsize=8)
def connect(bucket: str, _process: int) -> ObjectStore:
    """The store of a bucket, once a process: connections do not survive a fork."""
    from obstore.store import from_url

    endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))
    return from_url(
        bucket,
        client_options={
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            "timeout": timedelta(seconds=_REQUEST_SECONDS),
            "allow_http": any(url.startswith("http://") for url in endpoints),
        },
        retry_config={
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=_FIRST_BACKOFF_SECONDS),
                "max_backoff": timedelta(seconds=_MAX_BACKOFF_SECONDS),
                "base": 2,
            },
        },
    )


@functools.lru_cache(maxsize=1)
def request_threads(_process: int) -> ThreadPoolExecutor:
    """For requests that run beside each other; they wait outside of Python."""
    return ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="object-store")


def is_conflict(error: Exception) -> bool:
    """Whether a store refused a request for another that crossed it, so that it may be repeated."""
    status = _STATUS.search(str(error))
    return status is not None and status[1] == _CONFLICT


def _is_used_up(text: str) -> bool:
    """Whether a request was repeated as often, or for as long, as it may be.

    An answer that breaks off ends obstore's own tries at once, however few there were.
    """
    tried = _TRIED.search(text)
    if tried is None:
        return False
    seconds = float(tried[1]) * _UNITS[tried[2]]
    return int(tried[3]) >= int(tried[4]) or seconds >= float(tried[5])


def _explain(place: str, error: Exception) -> StorageError:
    """The error to raise: StorageUnavailableError where the same request may do better later."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(error)
    bucket = "/".join(place.split("/")[:3])
    reason = text.partition("\n")[0][:300]
    status = _STATUS.search(text)
    if status is not None and status[1] == "416":
        return PastTheEndError(f"{place}: {reason}")
    keys = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
    if place.startswith("gs:"):
        keys = "GOOGLE_APPLICATION_CREDENTIALS"
    keys += " (on a Ray cluster of each node, where `ray start` runs)"
    lost_upload = "NoSuchUpload" in text
    missing = isinstance(error, FileNotFoundError) and not lost_upload
    if "NoSuchBucket" in text or missing:
        return StorageError(
            f"{place}: there is no bucket {bucket}; create it, or correct the storage URL or "
            "the endpoint (AWS_ENDPOINT_URL)"
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
        return StorageError(
            f"{place}: access denied ({reason}); check {keys}, and that they may read, write, list "
            "and delete there"
        )
    if any(service in text for service in _METADATA_SERVICES):
        return StorageError(
            f"{place}: no credentials, neither in the environment nor from this machine "
            f"({reason}); set {keys}"
        )
    refused = status is not None and status[1][0] in "34" and status[1] not in _PASSING_STATUS
    if refused and not lost_upload:
        return StorageError(
            f"{place}: the store refuses the request ({reason}); check {keys}, and the bucket"
        )
    if "Received redirect" in text:
        return StorageError(f"{place}: {reason}; correct AWS_REGION or the endpoint")
    kind = StorageUnavailableError if _is_used_up(text) else BrokenAnswerError
    return kind(
        f"{place}: the store cannot be reached or fails, also when tried again ({reason}); run the "
        "same command again when it is back"
    )
