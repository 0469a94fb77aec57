"""Files at a URL through fsspec: whole or in part, with patience, and without a secret in anything that is said.

fsspec's event loop runs in a thread, which a fork does not copy: every process opens file systems of its own.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from cass_scale.data.rangecache import RangeCache
from cass_scale.errors import CassScaleError, ConfigError, DataError, MissingExtra
from cass_scale.words import is_url, redact

ATTEMPT, WHOLE_FILE = 60.0, 600.0  # seconds that one attempt may take: for a range, for a file
PATIENCE, AT_FIRST = 300.0, 30.0  # seconds until trouble that may pass is given up: in a run, and when a person waits
PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds between attempts, doubled each time

NEEDS = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "memory": "fsspec"}
OPTIONS: dict[str, dict[str, Any]] = {  # trust_env: proxies and ~/.netrc. Retries are ours alone
    "http": {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"trust_env": True}},
    "s3": {"config_kwargs": {"connect_timeout": 20, "read_timeout": ATTEMPT, "retries": {"total_max_attempts": 1}}},
}
OPTIONS["https"] = OPTIONS["http"]
CREDENTIALS = {
    "http": "put USER:PASSWORD@ before the host, or a line into ~/.netrc",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for a store that is not "
    "Amazon's; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or log in with gcloud; FSSPEC_GS_TOKEN=anon for a public "
    "bucket",
    "memory": "none are needed",
}
CREDENTIALS["https"] = CREDENTIALS["http"]

# Names of classes of aiohttp, botocore, gcsfs, google.auth and requests, none of which is imported here.
NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
}
UNREACHABLE = {
    "ClientConnectorError", "ConnectionTimeoutError", "EndpointConnectionError", "ConnectTimeoutError", "SSLError",
    "ConnectionRefusedError", "gaierror",
}  # fmt: skip
MAY_PASS = {
    "OSError", "EOFError", "ClientError", "HTTPClientError", "ResponseParserError", "IncompleteReadError", "HttpError",
    "ChecksumError", "GoogleAuthError", "RequestException",
}  # fmt: skip

_kept: list[Any] = []  # all file systems: collected in a forked process, they would wait for a loop that is not there
_given: dict[str, str] = {}  # URL as it may be shown -> as it was given, with user, password and query


class NotThere(DataError):
    """The store has no such file."""


def public(path: str) -> str:
    """A path as it may be shown and recorded; what a URL hides is known to this process alone. Raises ConfigError."""
    if not is_url(path):
        return path
    scheme, _, rest = path.partition("://")
    host, slash, tail = rest.partition("?")[0].partition("/")
    if "@" in host and not scheme.startswith("http"):
        raise ConfigError(f"data.path={scheme}://...: credentials have no place there; {CREDENTIALS.get(scheme, '')}")
    shown = f"{scheme}://" + f"{host.rpartition('@')[2]}{slash}{tail}".rstrip("/")
    if shown != path.rstrip("/"):
        _given[shown] = path
    return shown


def check(url: str) -> None:
    """Raise ConfigError when shards cannot be read from such a URL, MissingExtra when a package is not installed."""
    scheme = url.partition("://")[0]
    if scheme not in NEEDS:
        raise ConfigError(
            f"data.path={url}: shards are read from {', '.join(NEEDS)} or a folder; copy them to one of these"
        )
    _system(scheme, os.getpid())


def fetch(url: str, name: str, offset: int = 0, length: int | None = None, *, first: bool = False) -> bytes:
    """The file `name` of the folder `url`, or up to `length` bytes of it from `offset` on.

    Trouble that may pass is tried again, for PATIENCE seconds; `first` contact gives up after AT_FIRST, and at once
    when nobody answers. Raises NotThere, or DataError that says what would work.
    """
    where, began = f"{public(url)}/{name}", time.monotonic()
    for attempt in itertools.count(1):
        try:
            data = _read(_full(url), name, offset, length)
            break
        except CassScaleError:
            raise
        except FileNotFoundError:
            raise NotThere(f"{where} is not there (404); was everything that `cass-scale shard` made copied?") from None
        except Exception as error:  # their own words may hold a secret: none is passed on as it is
            chain = list(_chain(error))
            if lasting := _lasting(chain, url.partition("://")[0], first):
                _system.cache_clear()  # the next call may come with other credentials
                raise DataError(f"{where} {lasting}") from None
            waited, pause = time.monotonic() - began, min(LONGEST_PAUSE, PAUSE * 2 ** (attempt - 1))
            if waited + pause > (AT_FIRST if first else PATIENCE):
                raise DataError(
                    f"{where}: given up after {waited:.0f} s (attempts: {attempt}, the last one: {_why(chain)}); "
                    "when the store answers again, run the same command again"
                ) from None
        time.sleep(pause * random.SystemRandom().uniform(0.5, 1.0))  # processes that fail together spread out
    if length is not None and len(data) > length:
        raise DataError(
            f"{public(url)}: this server sends whole files where a part is asked for (no Range requests), a whole tar "
            "for every image; take one that can (nginx, Apache, S3), or copy the shards to a folder"
        )
    return data


class RemoteRanges:
    """As LocalRanges, for files of the folder `url`: of a path only the name counts. What is read goes into `cache`."""

    def __init__(self, url: str, cache: RangeCache) -> None:
        self._url, self._cache = _full(url), cache  # whole: it goes along to processes that are not forked

    def open_range(self, path: Path, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on. Raises DataError."""
        data = fetch(self._url, path.name, offset, length)
        self._cache.put(path, offset, data)
        return data


def _full(url: str) -> str:
    return _given.get(url, url)


@cache
def _system(scheme: str, process: int) -> Any:
    """The file system of a process."""
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else gcsfs takes gRPC, which no fork survives
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints a traceback of each failure
    try:
        import fsspec

        system = fsspec.filesystem(scheme, skip_instance_cache=True, **OPTIONS.get(scheme, {}))
    except ImportError as error:
        raise MissingExtra(NEEDS[scheme], "cloud", f"data.path={scheme}://...") from error
    system.retries = 1  # s3fs's own; the others do not look
    _kept.append(system)
    return system


def _read(url: str, name: str, offset: int, length: int | None) -> bytes:
    base, mark, query = url.partition("?") if url.startswith("http") else (url, "", "")
    place = f"{base.rstrip('/')}/{name}{mark}{query}"
    end, seconds = (None, WHOLE_FILE) if length is None else (offset + length, ATTEMPT)
    system = _system(url.partition("://")[0], os.getpid())
    return bytes(system.cat_file(place, start=offset, end=end, timeout=seconds))


def _lasting(chain: list[BaseException], scheme: str, first: bool) -> str:
    """What no second attempt would mend, in words; '' for what may pass."""
    names = {base.__name__ for error in chain for base in type(error).__mro__}
    status, why = _status(chain), _why(chain)
    if names & NO_CREDENTIALS:
        return f"needs credentials and none were found: {CREDENTIALS[scheme]}"
    if status in (401, 403) or "PermissionError" in names or why.startswith("Forbidden"):  # the last is gcsfs's
        return f"is refused ({why}), the credentials are missing, wrong or not for this: {CREDENTIALS[scheme]}"
    if first and names & UNREACHABLE:
        return f"cannot be reached ({why}): is data.path right, is the network up, is a proxy needed (HTTPS_PROXY)?"
    if status == 416:
        return "is shorter than its index says, cut off or replaced: copy it again, or make the shards again"
    if "TimeoutError" in names or status in (408, 425, 429) or (status or 0) >= 500:
        return ""
    if status is None and names & MAY_PASS and "ValueError" not in names:  # aiohttp's InvalidURL is both
        return ""
    return f"cannot be read ({why}): is data.path right?"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(chain: list[BaseException]) -> int | None:
    """Of the HTTP answer: aiohttp has `status`, gcsfs `code`, botocore a `response`."""
    for error in chain:
        response = getattr(error, "response", None)
        found = getattr(error, "code" if type(error).__name__ == "HttpError" else "status", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(found, int):
            return found
    return None


def _why(chain: list[BaseException]) -> str:
    """What went wrong in the library's words, short and without secrets."""
    status, said = _status(chain), " ".join(str(getattr(chain[0], "message", "") or chain[0]).split())
    if not said:
        said = "no answer in time" if isinstance(chain[0], TimeoutError) else type(chain[0]).__name__
    return redact(said if status is None or str(status) in said else f"{status} {said}")[:200]
