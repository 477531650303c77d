"""Downloads over bad networks from servers that are not trusted.

Requests carries them: it knows proxies and certificates and speaks http and https only. What it leaves to its
callers is here: resuming a transfer that broke off, and checking what arrives. Pooch was looked at and left: it
starts every attempt from the first byte, and the two archives have 2 GB and 1.4 GB.
"""

from __future__ import annotations

import logging
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
import tenacity
import urllib3
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema

from repro.errors import InputError, line_of
from repro.fetch.archives import byte_bar
from weights_conversion.files import errors_named

log = logging.getLogger(__name__)

_BLOCK = 1 << 16
_NO_ADDRESS = (InvalidSchema, InvalidURL, MissingSchema)
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # the server may answer otherwise in a while


@dataclass(frozen=True)
class Patience:
    """How long a server may take; times in seconds.

    A transfer stalls when nothing arrives for ``read``, or less than ``least_rate`` bytes per second over that time.
    It is given up after ``attempts`` in a row that brought it no further than a stall does. Between them it waits
    ``first_wait``, twice as long each time, up to ``longest_wait``, or what the server's Retry-After asks for up to
    that.
    """

    connect: float = 20.0
    read: float = 60.0
    attempts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0
    least_rate: float = 100.0
    redirects: int = 5


class _TransientError(Exception):
    """What another attempt may mend. ``wait``: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def download(
    urls: Sequence[str],
    target: Path,
    *,
    most: int,
    size: int | None = None,
    check: Callable[[Path], object],
    hash_known: bool,
    patience: Patience = Patience(),
) -> str:
    """Fetch ``target`` from the first of ``urls`` that gives it whole; returns that URL.

    The file grows as ``<target>.part`` beside it and is renamed once ``check`` has accepted it. Where the hash is
    known, another attempt and a later call resume with the part, at any mirror; otherwise they begin anew.

    Args:
        urls: http or https, tried in this order.
        size: the file's bytes, where known.
        most: how many bytes it may have where the size is not known.
        check: raises InputError for a file that is not the right one.
        hash_known: whether ``check`` compares a hash.

    Raises InputError with one reason per URL: an answer other than the file (an error, a web page, an encoding that
    was not asked for), too many redirects or one from https to http without a known hash, another size than
    expected or announced, attempts without progress, a refused check; and for a disk that has too little space.
    """
    reasons = []
    for url in urls:
        transfer = _Transfer(url, target, most, size, hash_known, patience)
        try:
            transfer.run(check)
        except InputError as error:
            reasons.append(f"{urlsplit(url).netloc}: {error}")
            log.info("%s: %s", url, error)
            continue
        return url
    raise InputError(
        f"{target.name}: could not be downloaded from {len(urls)} source(s): {'; '.join(reasons)}"
    )


class _Transfer:
    """One file from one URL."""

    def __init__(
        self, url: str, target: Path, most: int, size: int | None, hash_known: bool, patience: Patience
    ) -> None:
        self.url, self.target, self.most, self.size = url, target, most, size
        self.hash_known, self.patience = hash_known, patience
        self.part = target.with_name(target.name + ".part")
        self.fruitless = 0
        self.furthest = 0
        self.resumed = False

    def run(self, check: Callable[[Path], object]) -> None:
        for is_last in (False, True):
            self._attempts()
            try:
                check(self.part)
            except InputError:
                self._discard()
                if is_last or not self.resumed:
                    raise
            else:
                break
            log.info(
                "%s: the parts of %s do not fit together; from the beginning", self.url, self.target.name
            )
            self.resumed, self.fruitless, self.furthest = False, 0, 0
        self.part.replace(self.target)

    def _attempts(self) -> None:
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TransientError),
            stop=lambda _: self.fruitless >= self.patience.attempts,
            wait=self._wait,
            before_sleep=lambda state: log.info(
                "%s: %s; again in %.0f s",
                self.url,
                state.outcome and state.outcome.exception(),
                state.upcoming_sleep,
            ),
            reraise=True,
        )
        try:
            attempts(self._attempt)
        except _TransientError as error:
            raise InputError(f"{error} ({self.fruitless} attempts without progress)") from None

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, _TransientError) else 0.0
        backoff = self.patience.first_wait * 2 ** (self.fruitless - 1) * (1 + random.random() / 4)
        return min(max(asked, backoff), self.patience.longest_wait)

    def _attempt(self) -> None:
        try:
            self._request()
        except _TransientError:
            raise
        except requests.TooManyRedirects:
            raise InputError(f"more than {self.patience.redirects} redirects") from None
        except _NO_ADDRESS:
            raise InputError("leads to an address that is neither http nor https") from None
        except requests.exceptions.SSLError as error:
            raise InputError(f"its certificate is not accepted ({line_of(error, 200)})") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _TransientError(line_of(error, 200)) from None
        finally:
            reached = self.part.stat().st_size if self.part.exists() else 0
            least = max(1, self.patience.least_rate * self.patience.read)  # less than this is a stall
            self.fruitless = 0 if reached - self.furthest >= least else self.fruitless + 1
            self.furthest = max(reached, self.furthest)

    def _request(self) -> None:
        have = self._usable_part()
        if have and have == self.size:
            self.resumed = True
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": "sec-dsrg-repro"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.Session() as session:
            session.max_redirects = self.patience.redirects
            with session.get(
                self.url, headers=headers, stream=True, timeout=(self.patience.connect, self.patience.read)
            ) as response:
                self._receive(response, have)

    def _usable_part(self) -> int:
        """Bytes of the part, where a transfer can resume from it; else the part is removed."""
        if not self.part.exists():
            return 0
        have = self.part.stat().st_size
        if not self.hash_known or have > (self.size or self.most):
            self._discard()
            return 0
        return have

    def _receive(self, response: requests.Response, have: int) -> None:
        self._refuse_downgrade(response)
        status = response.status_code
        if status == 416 and have:  # nothing beyond what there is: it is complete, or it is another file
            self.resumed = True
            if _total_of(response) == have and self.size is None:
                return
            self._discard()
            raise _TransientError("refuses to resume where it broke off")
        if status in _AGAIN:
            raise _TransientError(f"HTTP {status} {response.reason}", _retry_after(response))
        if status not in (200, 206) or (status == 206 and not have):
            raise InputError(f"HTTP {status} {response.reason}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise InputError("answers with a web page, not with the file")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise InputError(f"sends it as {response.headers['Content-Encoding']}, which was not asked for")
        if status == 206:
            if _start_of(response) != have:
                raise InputError(
                    f"sends {response.headers.get('Content-Range')!r}, the bytes from {have} expected"
                )
            self.resumed = True
        else:
            have = 0  # ranges are not supported: from the beginning
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        limit = self.size or self.most
        if total is not None and (total > limit or (self.size and total != self.size)):
            raise InputError(f"announces {total} bytes; expected {'' if self.size else 'at most '}{limit}")
        require_space(self.target.parent, (total or self.size or 0) - have, self.target.name)
        self._copy(response, have, total or self.size, limit)

    def _copy(self, response: requests.Response, have: int, total: int | None, limit: int) -> None:
        patience, reached, mark, at_mark = self.patience, have, time.monotonic(), have
        bar = byte_bar(self.target.name, total, have)
        with bar, self.part.open("ab" if have else "wb") as file:
            while block := response.raw.read1(_BLOCK, decode_content=False):
                reached += len(block)
                if reached > limit:
                    raise InputError(f"sends more than the {limit} bytes expected")
                with errors_named(self.part):
                    file.write(block)
                bar.update(len(block))
                if (passed := time.monotonic() - mark) > patience.read:
                    if (reached - at_mark) / passed < patience.least_rate:
                        raise _TransientError(f"stalls: {reached - at_mark} bytes in {passed:.0f} s")
                    mark, at_mark = time.monotonic(), reached
        if total is not None and reached != total:
            raise _TransientError(f"ends after {reached} of {total} bytes")

    def _refuse_downgrade(self, response: requests.Response) -> None:
        """https that redirects to http may be anyone's answer: allowed only where a hash tells."""
        schemes = [urlsplit(step.url).scheme for step in (*response.history, response)]
        if not self.hash_known and "https" in schemes and "http" in schemes[schemes.index("https") :]:
            raise InputError("redirects from https to http, and no hash is known to check the file with")

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise InputError unless the file system of ``folder`` has ``size`` bytes free and 1 % more."""
    free = shutil.disk_usage(folder).free
    if size > 0 and free < size * 1.01:
        raise InputError(f"{folder}: {size / 1e9:.2f} GB needed for {what}, {free / 1e9:.2f} GB free")


def _start_of(response: requests.Response) -> int | None:
    found = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _total_of(response: requests.Response) -> int | None:
    found = re.search(r"/([0-9]{1,18})$", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _retry_after(response: requests.Response) -> float:
    asked = response.headers.get("Retry-After", "")
    return float(asked) if re.fullmatch(r"[0-9]{1,6}", asked) else 0.0
