"""A Hugging Face hub on this machine: a redirect that names the checksum, a store with the bytes.

Each shard can be told to misbehave for its next requests.
"""

import hashlib
import io
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_shard(seed: int, num_documents: int = 400) -> bytes:
    """Make a small shard of text that does not compress: about 0.4 MB for 400 documents."""
    source = random.Random(seed)
    texts = [source.randbytes(500).hex() for _ in range(num_documents)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink, row_group_size=100, compression="none")
    return sink.getvalue()


@dataclass
class Fault:
    """What goes wrong with a shard, for its next `times` requests."""

    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with `status`."""
    ends_after: int | None = None
    """Bytes of the answer after which the connection is cut."""
    stalls_after: int | None = None
    """Bytes of the answer after which nothing more comes."""
    wrong_bytes: bool = False
    ignores_range: bool = False
    no_length: bool = False
    """The store does not say how long the file is."""


class Hub:
    """The server; `requests` has the Range header of each request to the store, by shard."""

    def __init__(self) -> None:
        self.shards: dict[str, bytes] = {}
        self.faults: dict[str, Fault] = {}
        self.names_checksums = True
        self.authorization: str | None = None
        """The header without which everything is refused."""
        self.num_requests = 0
        self.requests: list[tuple[str, str | None]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        hub = self

        class Handler(HubHandler):
            def setup(self) -> None:
                self.hub = hub
                super().setup()

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def shard(self, name: str) -> bytes:
        """Give the content of a shard, made when it is first asked for."""
        with self.lock:
            if name not in self.shards:
                self.shards[name] = parquet_shard(len(self.shards))
            return self.shards[name]

    def take_fault(self, name: str) -> Fault:
        """Give what goes wrong with this request."""
        with self.lock:
            fault = self.faults.get(name, Fault(times=0))
            fault.times -= 1
            return fault if fault.times >= 0 else Fault()

    def ranges(self, name: str) -> list[str | None]:
        """List the Range headers that the store saw for a shard."""
        return [byte_range for shard, byte_range in self.requests if shard == name]


class QuietServer(ThreadingHTTPServer):
    """A server whose clients may go away in the middle of an answer."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class HubHandler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        with self.hub.lock:
            self.hub.num_requests += 1
        if self.hub.authorization not in (None, self.headers.get("Authorization")):
            self.send_error(401)
        elif self.path.startswith("/store/"):
            self.send_content(name)
        else:
            self.send_redirect(name)

    def send_redirect(self, name: str) -> None:
        content = self.hub.shard(name)
        self.send_response(302)
        self.send_header("Location", f"/store/{name}")
        self.send_header("Content-Length", "0")
        if self.hub.names_checksums:
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.end_headers()

    def send_content(self, name: str) -> None:
        content, byte_range = self.hub.shard(name), self.headers.get("Range")
        fault = self.hub.take_fault(name)
        with self.hub.lock:
            self.hub.requests.append((name, byte_range))
        if fault.status is not None:
            self.send_response(fault.status)
            for header, value in {"Content-Length": "0", **fault.headers}.items():
                self.send_header(header, value)
            self.end_headers()
            return
        if fault.wrong_bytes:
            content = bytes(byte ^ 1 for byte in content)
        body = self.send_head(content, None if fault.ignores_range else byte_range, fault)
        sent = [n for n in (fault.ends_after, fault.stalls_after) if n is not None]
        self.wfile.write(body[: min(sent, default=len(body))])
        self.wfile.flush()
        if fault.stalls_after is not None:
            self.hub.closing.wait(20)
        if sent or fault.no_length:
            self.close_connection = True

    def send_head(self, content: bytes, byte_range: str | None, fault: Fault) -> bytes:
        """Send status and headers; gives the body."""
        first, last, total = 0, len(content) - 1, "*" if fault.no_length else str(len(content))
        if byte_range is None:
            self.send_response(200)
        else:
            begin, _, end = byte_range.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
            if first > last:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return b""
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        if not fault.no_length:
            self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        return content[first : last + 1]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub on a free port of the loopback."""
    hub = Hub()
    thread = threading.Thread(target=lambda: hub.server.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.server.shutdown()
        thread.join()
        hub.server.server_close()
