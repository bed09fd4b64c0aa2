"""Where collected rollouts go: a learner's `POST /samples`, or a folder that both sides see."""

from __future__ import annotations

import http.client
import os
from urllib.parse import urlsplit

from sglang_respec.errors import RespecError
from sglang_respec.learner.collect_outbox import Channel, ChannelRefused, ChannelUnavailable
from sglang_respec.learner.spool import Spool

DEFAULT_PATH = "/samples"
CONNECT_S = 5.0  # also the longest silence while sending or waiting for the answer
TRY_AGAIN = {408, 425, 429}  # and whatever is the server's fault


def open_channel(destination: str, key: str, folder_bytes: int) -> Channel:
    """For a URL or a folder, as `check_samples` lets them through. Raises `RespecError` for a
    folder that cannot be made.

    key: what the receiver wants as `Authorization: Bearer KEY`; empty for none.
    folder_bytes: the most that chunks may take in a folder; the oldest are dropped.
    """
    if "://" in destination:
        return HttpChannel(destination, key)
    return FolderChannel(destination, folder_bytes)


class HttpChannel:
    """One request per chunk and a connection for each: the receiver may restart any time."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else (
            http.client.HTTPConnection)  # fmt: skip
        self._connect = lambda: kind(parts.hostname or "", parts.port, timeout=CONNECT_S)
        self._url = url
        self._path = parts.path if parts.path not in ("", "/") else DEFAULT_PATH
        self._headers = {"Content-Type": "application/octet-stream"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def send(self, chunk: bytes) -> None:
        connection = self._connect()
        try:
            connection.request("POST", self._path, body=chunk, headers=self._headers)
            answer = connection.getresponse()
            status, text = answer.status, answer.read(2048).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ChannelUnavailable(f"{self._url}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if status >= 500 or status in TRY_AGAIN:
            raise ChannelUnavailable(f"{self._url} answers {status}: {text}")
        if not 200 <= status < 300:
            raise ChannelRefused(f"{self._url} answers {status}: {text}")


class FolderChannel:
    """Chunks as files of a `Spool`: whole or not there, the oldest dropped beyond its budget."""

    def __init__(self, folder: str | os.PathLike[str], budget_bytes: int) -> None:
        try:
            self._spool = Spool(folder, budget_bytes)
        except OSError as error:
            raise RespecError(
                f"The folder {folder} for rollouts cannot be made ({error.strerror}); give "
                "--respec-samples-to another."
            ) from error

    def send(self, chunk: bytes) -> None:
        try:
            self._spool.add(chunk)
        except OSError as error:
            raise ChannelUnavailable(f"{self._spool.folder}: {error.strerror}") from error
