"""One body over HTTP into a partial file that outlives every kill.

Owns going on where a transfer ended (``Range``), telling a passing fault from a final one, and the back-off
between tries. It never judges the bytes: it returns their sha256. ``hub`` calls it, on any thread.

Deliberate oddities:

1. Every try starts at the hub's own address and follows its redirect anew, so that a signed URL is always
   fresh. httpx drops the token where a redirect leaves the origin.
2. A chunk is written as it comes, without a buffer: what a SIGKILL finds in a buffer would be sent twice.
3. Errors say nothing that a server has said, and no address: a signed URL opens the file to whoever reads it.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO

import httpx

from nexa_runtime.errors import HubAccessError, HubUnavailableError, NotFoundError

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before each further try, while none brings anything."""
LONGEST_WAIT_S = 60.0
"""No ``Retry-After`` is obeyed for longer."""
RATE_WINDOW_S = 60.0
MIN_RATE_BYTES_PER_S = 1024
"""What brings less than this over a whole window has stalled, though a byte comes now and then."""
_READ_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,20})-[0-9]{1,20}/([0-9]{1,20})")

OnProgress = Callable[[int], None]
OnRetry = Callable[[str], None]
Sleep = Callable[[float], None]


class PassingError(Exception):
    """A fault that another try may not meet. ``retry_after_s``: what the server asked for, if it did."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        self.reason = reason
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class TooSlowError(PassingError):
    """What came does not count: it would go on like this for ever."""

    def __init__(self) -> None:
        super().__init__(f"less than {MIN_RATE_BYTES_PER_S} bytes a second came")


class Retries:
    """Counts the tries in a row that brought nothing, and waits longer after each."""

    def __init__(
        self, on_retry: OnRetry, sleep: Sleep = time.sleep, waits_s: Sequence[float] = WAITS_S
    ) -> None:
        self._on_retry = on_retry
        self._sleep = sleep
        self._waits_s = waits_s
        self._num_tries = 0

    def reset(self) -> None:
        """Something came: the next fault is a first one."""
        self._num_tries = 0

    def wait(self, error: PassingError) -> bool:
        """Wait for the next try; false, at once, where there is none left."""
        if self._num_tries == len(self._waits_s):
            return False
        asked_s = min(error.retry_after_s or 0.0, LONGEST_WAIT_S)
        wait_s = max(self._waits_s[self._num_tries], asked_s)
        self._num_tries += 1
        self._on_retry(f"{error.reason}; trying again in {wait_s:g} s")
        self._sleep(wait_s)
        return True


@dataclass(frozen=True, slots=True)
class Source:
    """What is fetched. ``name`` stands for it in errors; ``token`` goes to the URL's origin only."""

    name: str
    url: str
    size_bytes: int
    token: str | None


class Transfer:
    """Fetches one source; ``run`` is called once. ``on_progress`` gets the bytes that are there."""

    def __init__(
        self, client: httpx.Client, source: Source, on_progress: OnProgress, retries: Retries
    ) -> None:
        self._client = client
        self._source = source
        self._on_progress = on_progress
        self._retries = retries
        self._hash = hashlib.sha256()
        self._done = self._most = 0

    def run(self, partial: Path) -> str:
        """The sha256 of the whole, also of what was there before.

        Raises ``HubUnavailableError`` when tries run out, ``HubAccessError``, ``NotFoundError``, ``OSError``.
        """
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab+") as out:
            self._take_stock(out)
            while self._done < self._source.size_bytes:
                try:
                    self._attempt(out)
                except PassingError as error:
                    self._wait(error)
        return self._hash.hexdigest()

    def _take_stock(self, out: BinaryIO) -> None:
        out.seek(0)
        while chunk := out.read(_READ_BYTES):
            self._count(chunk)
        if self._done > self._source.size_bytes:
            self._start_over(out)
        self._most = self._done

    def _wait(self, error: PassingError) -> None:
        if not isinstance(error, TooSlowError):
            self._note_gain()
        if not self._retries.wait(error):
            raise HubUnavailableError(
                f"{self._source.name} could not be fetched: {error.reason}; {self._done} of"
                f" {self._source.size_bytes} bytes are there, and the next pull goes on from them."
            ) from None

    def _note_gain(self) -> None:
        # A server that always starts over must not count as one that goes on.
        if self._done > self._most:
            self._most = self._done
            self._retries.reset()

    def _attempt(self, out: BinaryIO) -> None:
        try:
            with self._client.stream("GET", self._source.url, headers=self._headers()) as response:
                if self._accept(response, out):
                    self._take_body(response, out)
        except httpx.HTTPError as error:
            raise PassingError(fault_of(error)) from None

    def _headers(self) -> dict[str, str]:
        # Compressed, a byte's place in the body would not be its place in the file.
        headers = {"Accept-Encoding": "identity"}
        if self._source.token:
            headers["Authorization"] = f"Bearer {self._source.token}"
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
        return headers

    def _accept(self, response: httpx.Response, out: BinaryIO) -> bool:
        """Whether the body is the part that was asked for; false: ask for the whole."""
        if response.status_code == 416 and self._done:
            self._start_over(out)
            return False
        if response.status_code not in (200, 206):
            raise self._refusal(response)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise HubUnavailableError(f"{self._source.name} is sent compressed, so it cannot be verified.")
        if response.status_code == 200:
            self._accept_whole(response, out)
        else:
            self._accept_part(response, out)
        return True

    def _accept_whole(self, response: httpx.Response, out: BinaryIO) -> None:
        # A sign-in page of some network in between must not replace what is there.
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) != self._source.size_bytes:
            raise PassingError(f"the answer has {length} bytes")
        if self._done:
            self._start_over(out)

    def _accept_part(self, response: httpx.Response, out: BinaryIO) -> None:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or (int(match[1]), int(match[2])) != (self._done, self._source.size_bytes):
            self._start_over(out)
            raise PassingError("the answer is another part than the one asked for")

    def _take_body(self, response: httpx.Response, out: BinaryIO) -> None:
        window_end, window_done = time.monotonic() + RATE_WINDOW_S, self._done
        for chunk in response.iter_raw():
            rest = chunk[: self._source.size_bytes - self._done]
            out.write(rest)
            out.flush()
            self._count(rest)
            if self._done == self._source.size_bytes:
                return
            if time.monotonic() >= window_end:
                if self._done - window_done < MIN_RATE_BYTES_PER_S * RATE_WINDOW_S:
                    raise TooSlowError
                self._note_gain()
                window_end, window_done = time.monotonic() + RATE_WINDOW_S, self._done
        raise PassingError("the answer ended too early")

    def _count(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._done += len(chunk)
        self._on_progress(self._done)

    def _start_over(self, out: BinaryIO) -> None:
        out.truncate(0)
        self._hash = hashlib.sha256()
        self._done = 0
        self._on_progress(0)

    def _refusal(self, response: httpx.Response) -> Exception:
        # Storage behind a redirect answers 403 when a signed URL has run out: only the hub's own is final.
        status = response.status_code
        is_hub = _origin(response.url) == _origin(httpx.URL(self._source.url))
        if (is_hub or "x-error-code" in response.headers) and status in (401, 403):
            return HubAccessError(f"The hub does not give {self._source.name} to this token, or to none.")
        if is_hub and status == 404:
            return NotFoundError(f"The hub has no {self._source.name} any more.")
        who = "the hub" if is_hub else "its storage"
        return PassingError(f"{who} answered with status {status}", retry_after_s(response.headers))


def fault_of(error: Exception) -> str:
    """A few words for what a client's exception means; never its own text."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "it cannot be reached"
    if isinstance(error, httpx.TimeoutException):
        return "nothing came for too long"
    if isinstance(error, httpx.TooManyRedirects):
        return "it redirects without end"
    return "the connection broke"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """``Retry-After`` in either form (RFC 9110, 10.2.3), in seconds from now."""
    text = headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # a zone may be any number
        return None
    # A date without a zone is one in UTC.
    return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
