"""One file from a server that may be slow, broken or hostile: bounded in time, size and memory.

The Hub's own client has no deadline for the whole, reads an error's or a redirection's page into
memory however long it is, and compares sizes only. Here a file is written to disk as it arrives,
never beyond its announced size, and its content is compared with the hash that the Hub announces.
"""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import BinaryIO

LARGEST = 2**30  # bytes of a file, whatever is announced
# Bytes received per byte of a file before a download that breaks again and again is given up.
PATIENCE = 3
ATTEMPTS = 5  # at the same place
REDIRECTIONS = 10


class HubError(RuntimeError):
    """A file cannot be had, or is not what it should be. `kind` is one of `KINDS`."""

    KINDS = (
        "not installed",
        "offline",
        "no network",
        "time-out",
        "not found",
        "no permission",
        "half a file",
        "wrong file",
        "no answer",
    )

    def __init__(self, kind: str, message: str):
        assert kind in self.KINDS, kind
        super().__init__(message)
        self.kind = kind


def within(seconds: float, work: Callable[[threading.Event], object]):
    """`work(stop)` in a thread of its own, or `TimeoutError` when the time is up.

    The thread cannot be ended from outside: `stop` is set, and `work` gives up when it sees that.
    What it writes after that must not matter.
    """
    stop, outcome = threading.Event(), {}

    def run():
        try:
            outcome["result"] = work(stop)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:
        stop.set()
    if not outcome:
        raise TimeoutError
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def receive(
    session,
    url: str,
    file: BinaryIO,
    size: int,
    *,
    headers: dict,
    timeout: float,
    name: str,
    stop: threading.Event,
    on_bytes: Callable[[int], None] = lambda number: None,
) -> None:
    """Write `size` bytes from `url` to an empty file; goes on where a connection broke off.

    session: the Hub's HTTP client (httpx)
    timeout: seconds without a single byte
    name:    of the file, in messages
    Raises `HubError`, `TimeoutError` if `stop` is set, and what the client raises.
    """
    received = failures = 0
    while True:
        start = file.tell()
        try:
            with _open(session, url, headers, timeout, start) as response:
                if response.status_code not in (200, 206):
                    raise HubError("no answer", f"{name}: the answer is {response.status_code}.")
                if response.status_code == 200:
                    file.seek(start := 0)
                    file.truncate()
                for piece in response.iter_raw():
                    if stop.is_set():
                        raise TimeoutError
                    if file.tell() + len(piece) > size:
                        raise HubError(
                            "wrong file",
                            f"{name}: more arrives than the {size:,} bytes that the Hub announces.",
                        )
                    file.write(piece)
                    received += len(piece)
                    on_bytes(len(piece))
        except Exception as error:
            failures = failures + 1 if file.tell() == start else 0
            if not _broke_off(error) or stop.is_set():
                raise
            if received > PATIENCE * size or (failures >= ATTEMPTS and file.tell()):
                raise HubError(
                    "half a file",
                    f"{name}: the file arrived incomplete, the download broke off again and "
                    "again. Try again later.",
                ) from None
            if failures >= ATTEMPTS:
                raise
            time.sleep(1)
            continue
        if file.tell() < size:
            raise HubError("half a file", f"{name}: the file arrived incomplete. Try again.")
        return


def _open(session, url: str, headers: dict, timeout: float, start: int):
    """The answer to a GET, its content unread; redirections are followed without reading theirs."""
    asked = headers | {"Accept-Encoding": "identity"}
    asked |= {"Range": f"bytes={start}-"} if start else {}
    request = session.build_request("GET", url, headers=asked, timeout=timeout)
    for _ in range(REDIRECTIONS):
        response = session.send(request, stream=True, follow_redirects=False)
        if response.next_request is None:
            return closing(response)
        response.close()
        request = response.next_request
    raise HubError("no answer", f"{url}: more than {REDIRECTIONS} redirections.")


def _broke_off(error: Exception) -> bool:
    """httpx in one release of huggingface_hub is httpx2 in the next, so by its errors' names."""
    return "TransportError" in {kind.__name__ for kind in type(error).__mro__}
