"""Requests to a Hugging Face hub over huggingface_hub's session, each failure in one sentence.

HF_ENDPOINT names another hub, HF_TOKEN (or `hf auth login`) is the key, HF_HUB_OFFLINE forbids the network.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mlxo import __version__
from mlxo.core.errors import Forbidden, InvalidRequest, MlxoError, NotFound, UpstreamError
from mlxo.store.progress import check

_ENDPOINT = "https://huggingface.co"
_TIMEOUT = 30.0  # seconds without a byte
_TRIES = 5  # in a row, without a byte of progress
_PAUSE = 0.1  # seconds before the first retry, doubled for every further one
_RETRY = frozenset((408, 429, 500, 502, 503, 504))
_TOKEN = "set HF_TOKEN to a token that may read it, from https://huggingface.co/settings/tokens"

T = TypeVar("T")


class Interrupted(Exception):
    """Worth another try; `error` is what to raise when there is none."""

    def __init__(self, error: MlxoError) -> None:
        super().__init__(error.message)
        self.error = error


class Hub:
    """Requests for one repository. `host` is the hub's name in messages."""

    def __init__(self, repo: str, cancelled: threading.Event) -> None:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self._endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or _ENDPOINT
        parts = urlsplit(self._endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequest(f"HF_ENDPOINT={self._endpoint!r} is no address", f"for example {_ENDPOINT}")
        self.host = parts.netloc
        self.repo = repo
        self._cancelled = cancelled
        # Compressed answers would put ranges and sizes out of step.
        known = build_hf_headers(library_name="mlxo", library_version=__version__)
        self._headers = {**known, "Accept-Encoding": "identity"}

    @contextlib.contextmanager
    def open(self, path: str, headers: dict[str, str]) -> Iterator[Any]:
        """A streamed GET of `path` below the endpoint. Raises our errors, and Interrupted."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
        from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

        url = f"{self._endpoint}{path}"
        try:
            with get_session().stream(
                "GET", url, headers={**self._headers, **headers}, timeout=_TIMEOUT, follow_redirects=True
            ) as response:
                hf_raise_for_status(response)
                yield response
        except OfflineModeIsEnabled as e:
            raise UpstreamError(
                "HF_HUB_OFFLINE is set, so nothing can be fetched", "unset HF_HUB_OFFLINE"
            ) from e
        except HfHubHTTPError as e:
            raise self._refusal(e) from e
        except TransportError as e:
            error = UpstreamError(
                f"{self.host} cannot be reached: {str(e) or type(e).__name__}",
                "check the network and HF_ENDPOINT; a pull goes on where it stopped",
            )
            raise Interrupted(error) from e

    def patiently(self, attempt: Callable[[], T], progress: Callable[[], int]) -> T:
        """Call until it is not interrupted, or was so several times without `progress` growing."""
        failures = 0
        while True:
            before = progress()
            try:
                return attempt()
            except Interrupted as e:
                failures = 0 if progress() > before else failures + 1
                if failures >= _TRIES:
                    raise e.error from e.__cause__
            self._cancelled.wait(_PAUSE * 2**failures)
            check(self._cancelled)

    def _refusal(self, e: Any) -> Exception:
        """`e` is a HfHubHTTPError."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        status = e.response.status_code
        if isinstance(e, GatedRepoError):
            return Forbidden(
                f"{self.repo} on {self.host} is gated",
                f"ask for access at {self._endpoint}/{self.repo}, then {_TOKEN}",
            )
        if isinstance(e, RepositoryNotFoundError):
            return NotFound(
                f"pull model manifest: file does not exist: {self.host} has no {self.repo}, or it is private",
                f"check the name; for a private repository {_TOKEN}",
            )
        if isinstance(e, RevisionNotFoundError):
            return NotFound(
                f"{self.repo} on {self.host} has no such revision", f"leave the tag away: hf.co/{self.repo}"
            )
        if status in (401, 403):
            return Forbidden(f"{self.host} refuses {self.repo}: status {status}", _TOKEN)
        if status == 404:
            return NotFound(f"{self.host} has lost a file of {self.repo}", "pull it again")
        error = UpstreamError(f"{self.host} answered status {status} for {self.repo}", "try again later")
        return Interrupted(error) if status in _RETRY else error
