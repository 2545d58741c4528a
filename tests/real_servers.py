"""Servers of object stores as processes, and a proxy that spoils what goes through it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

KEYS = {"accessKey": "AKIDTEST", "secretKey": "SECRETTEST"}
# That of every Azurite, from its documentation
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
_PORTS += ("s3.port", "s3.port.grpc")


def free_ports(count: int) -> list[int]:
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in opened]
    for one in opened:
        one.close()
    return ports


def _served(command: list[str], root: Path, environment: dict[str, str], make: str) -> Iterator[dict[str, str]]:
    """The environment that leads to a server, when the bucket `models` is there. make: what makes it, in Python"""
    import sys  # noqa: PLC0415

    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(40):
            if not subprocess.run(
                [sys.executable, "-c", make], env=environment, capture_output=True, check=False
            ).returncode:
                break
            time.sleep(0.5)
        yield environment
    finally:
        process.kill()  # nothing of it stays; Azurite waits for connections to end
        process.wait()


def seaweed(weed: str, root: Path) -> Iterator[dict[str, str]]:
    identity = {"name": "t", "credentials": [KEYS], "actions": ["Admin", "Read", "Write", "List"]}
    root.mkdir(exist_ok=True)
    (root / "config").write_text(json.dumps({"identities": [identity]}))
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    here = ["-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-volume.max=100", "-master.volumeSizeLimitMB=64"]
    s3 = ["-s3", "-s3.config", str(root / "config"), "-s3.port.iceberg", "0", "-s3.port.lance", "0"]
    chosen = [part for name, port in ports.items() for part in (f"-{name}", str(port))]
    environment = os.environ | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
        "AWS_ACCESS_KEY_ID": KEYS["accessKey"],
        "AWS_SECRET_ACCESS_KEY": KEYS["secretKey"],
        "AWS_REGION": "us-east-1",
    }
    # The server makes the bucket of a first object
    put = "obstore.put(s.S3Store('models', client_options={'allow_http': True}), 'x', b'')"
    command = [weed, "server", "-dir", str(root), *here, "-master.telemetry=false", *s3, *chosen]
    yield from _served(command, root, environment, f"import obstore.store as s, obstore; {put}")


_CONTAINER = """
import base64, datetime, hashlib, hmac, os, urllib.error, urllib.request
now = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
own = "devstoreaccount1"
what = f"PUT{chr(10) * 12}x-ms-date:{now}\\nx-ms-version:2021-08-06\\n/{own}/{own}/models\\nrestype:container"
key = base64.b64decode(os.environ["AZURE_STORAGE_ACCOUNT_KEY"])
signed = base64.b64encode(hmac.new(key, what.encode(), hashlib.sha256).digest()).decode()
headers = {"x-ms-date": now, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {own}:{signed}"}
url = os.environ["AZURE_STORAGE_ENDPOINT"] + "/models?restype=container"
urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers | {"Content-Length": "0"}))
"""


def azurite(program: str, root: Path) -> Iterator[dict[str, str]]:
    """`azurite-blob`, of npm's azurite."""
    (port,) = free_ports(1)
    environment = os.environ | {
        "AZURE_STORAGE_ACCOUNT_NAME": "devstoreaccount1",
        "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/devstoreaccount1",
    }
    here = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(root), "--silent"]
    yield from _served([program, *here, "--skipApiVersionCheck"], root, environment, _CONTAINER)


Fault = Callable[[str, str, int], str]  # method, target, how often it was asked -> "500", "cut", "lost", "drop", ""


class Proxy:
    """A server that hands on to another, with delays and faults. Signatures hold, as the Host header passes."""

    def __init__(self, url: str, fault: Fault, delay: float = 0.0) -> None:
        self.seen, self.faults = Counter[tuple[str, str]](), Counter[str]()
        self.fault, self.delay, self.to, self.lock = fault, delay, urlsplit(url), threading.Lock()
        outer = self

        class Handler(_Handler):
            proxy = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _run(self) -> None:
        proxy, body = self.proxy, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        one = (f"{self.command} {self.headers.get('Range', '')}", self.path)
        with proxy.lock:
            proxy.seen[one] += 1
            fault = proxy.fault(*one, proxy.seen[one])
            proxy.faults[fault] += 1
        time.sleep(proxy.delay)
        self.close_connection = True
        if fault == "drop":
            return
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            self.close_connection = False
            return
        there = http.client.HTTPConnection(str(proxy.to.hostname), proxy.to.port)
        there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, text in self.headers.items():
            there.putheader(name, text)
        there.endheaders(body)
        reply = there.getresponse()
        data = reply.read()
        if fault == "lost":  # done, and nobody hears of it
            return
        self.send_response(reply.status)
        for name, text in reply.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                self.send_header(name, text)
        size = reply.headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
        if reply.status != 204 and size is not None:
            self.send_header("Content-Length", size)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            return
        self.wfile.write(data)
        self.close_connection = False
        there.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _run
