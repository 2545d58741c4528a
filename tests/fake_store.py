"""An S3 server in this process: ranges, lists, conditions, uploads in parts. Signatures are not looked at. What it is
asked is noted, and `fault` may spoil a reply."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from adaptertool.files import bucket

Fault = Callable[[str, str], str | None]  # method and target -> one of "503", "403", "cut", "drop", "lost" or None

_PAGE = 1000  # entries of a list
_STATUS = {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed", 416: "InvalidRange", 503: "SlowDown"}


class FakeS3:
    """Objects by bucket and key."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, bytes]] = {"bucket": {}}
        self.tags: dict[tuple[str, str], str] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.log: list[tuple[str, str, str]] = []  # method, target, range
        self.headers: list[Mapping[str, str]] = []
        self.fault: Fault = lambda _method, _target: None
        self.conditions, self.listed_tag = True, "&quot;{}&quot;"  # whether If-None-Match is heeded; ETags in lists
        self.told_tag, self.time = '"{}"', "Sat, 28 Nov 2026 02:00:00 GMT"
        self.hidden: Callable[[str], bool] = lambda _key: False  # what lists do not tell of yet
        self.lock = threading.Lock()
        self._numbers = itertools.count(1)
        outer = self

        class Handler(_Handler):
            fake = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIDFAKE",
            "AWS_SECRET_ACCESS_KEY": "SECRETFAKE",
            "AWS_REGION": "us-east-1",
            "GOOGLE_BASE_URL": self.url,
            "GOOGLE_BEARER_TOKEN": "SECRETFAKE",
        }

    def clear(self) -> None:
        self.buckets = {"bucket": {}}
        self.uploads, self.tags, self.log, self.headers = {}, {}, [], []
        self.fault = lambda _method, _target: None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, key: str, data: bytes, bucket: str = "bucket", tag: str | None = None) -> str:
        self.buckets[bucket][key] = data
        self.tags[bucket, key] = tag or hashlib.md5(data).hexdigest()
        return self.tags[bucket, key]

    def put_tree(self, root: Path, prefix: str) -> None:
        for path in root.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(root).as_posix()}", path.read_bytes())

    def tree(self, prefix: str) -> dict[str, bytes]:
        """What lies below a prefix, by the rest of its key."""
        return {
            key.removeprefix(f"{prefix}/"): data
            for key, data in self.buckets["bucket"].items()
            if key.startswith(f"{prefix}/")
        }

    def number(self) -> int:
        return next(self._numbers)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits until the headers, which go before it, are acknowledged: 40 ms

    def log_message(self, *_: object) -> None:
        pass

    def _run(self) -> None:
        fake, url = self.fake, urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.bucket, _, self.key = unquote(url.path).lstrip("/").partition("/")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with fake.lock:
            fake.log.append((self.command, self.path, self.headers.get("Range", "")))
            fake.headers.append(dict(self.headers))
        self.spoilt = fake.fault(self.command, self.path)
        if self.spoilt in ("503", "403"):
            self._fail(int(self.spoilt))
        elif self.spoilt == "drop":
            self.close_connection = True
        elif self.bucket not in fake.buckets:
            self._fail(404, "NoSuchBucket")
        else:
            with fake.lock:
                reply = getattr(self, f"_{self.command.lower()}")()
            if self.spoilt == "lost":  # done, and nobody hears of it
                self.close_connection = True
            elif isinstance(reply, int):
                self._fail(reply)
            else:
                self._send(*reply)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _run

    def _send(
        self, code: int, body: bytes = b"", headers: Mapping[str, str] | None = None, size: int | None = None
    ) -> None:
        self.send_response(code)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.spoilt == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, code: int, name: str = "") -> None:
        self.spoilt = None
        text = f"<Error><Code>{name or _STATUS[code]}</Code><Message>{self.path}</Message></Error>"
        self._send(code, b"" if self.command == "HEAD" else text.encode())

    def _facts(self) -> dict[str, str]:
        tag = self.fake.tags[self.bucket, self.key]
        facts = {"ETag": self.fake.told_tag.format(tag), "Last-Modified": self.fake.time, "Accept-Ranges": "bytes"}
        return {name: text for name, text in facts.items() if text}

    def _get(self) -> Any:
        if not self.key:
            return self._list()
        data = self.fake.buckets[self.bucket].get(self.key)
        if data is None:
            return 404
        if self.fake.conditions and self.headers.get("If-Match", self._facts().get("ETag")) != self._facts().get(
            "ETag"
        ):
            return 412
        if not (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            return 200, data, self._facts()
        begin, end = int(asked[1]), min(int(asked[2] or len(data) - 1) + 1, len(data))
        if begin >= len(data):
            return 416
        more = {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
        return 206, data[begin:end], self._facts() | more

    def _head(self) -> Any:
        data = self.fake.buckets[self.bucket].get(self.key)
        return 404 if data is None else (200, b"", self._facts(), len(data))

    def _put(self) -> Any:
        if "partNumber" in self.query:
            if self.query["uploadId"] not in self.fake.uploads:
                return 404
            self.fake.uploads[self.query["uploadId"]][int(self.query["partNumber"])] = self.body
            return 200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}
        only_new = self.headers.get("If-None-Match") == "*" or self.headers.get("x-goog-if-generation-match") == "0"
        if only_new and self.fake.conditions and self.key in self.fake.buckets[self.bucket]:
            return 412
        return 200, b"", {"ETag": f'"{self.fake.put(self.key, self.body, self.bucket)}"'}

    def _post(self) -> Any:
        if "uploads" in self.query:
            upload = str(self.fake.number())
            self.fake.uploads[upload] = {}
            text = f"<Bucket>{self.bucket}</Bucket><Key>{escape(self.key)}</Key><UploadId>{upload}</UploadId>"
            return 200, f"<InitiateMultipartUploadResult>{text}</InitiateMultipartUploadResult>".encode()
        if "delete" in self.query:
            keys = [key.decode() for key in re.findall(rb"<Key>(.*?)</Key>", self.body)]
            for key in keys:
                self.fake.buckets[self.bucket].pop(key, None)
            told = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
            return 200, f"<DeleteResult>{told}</DeleteResult>".encode()
        parts = self.fake.uploads.pop(self.query["uploadId"], None)
        if parts is None:
            return 404
        tag = hashlib.md5(b"".join(hashlib.md5(parts[number]).digest() for number in sorted(parts))).hexdigest()
        tag = self.fake.put(
            self.key, b"".join(parts[number] for number in sorted(parts)), self.bucket, f"{tag}-{len(parts)}"
        )
        text = f"<Bucket>{self.bucket}</Bucket><Key>{escape(self.key)}</Key><ETag>&quot;{tag}&quot;</ETag>"
        return 200, f"<CompleteMultipartUploadResult>{text}</CompleteMultipartUploadResult>".encode()

    def _delete(self) -> Any:
        if "uploadId" in self.query:
            self.fake.uploads.pop(self.query["uploadId"], None)
        else:
            self.fake.buckets[self.bucket].pop(self.key, None)
        return 204, b""

    def _list(self) -> Any:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        after = self.query.get("continuation-token") or self.query.get("start-after", "")
        keys, folders = list[str](), list[str]()
        for key in sorted(
            key for key in self.fake.buckets[self.bucket] if key.startswith(prefix) and not self.fake.hidden(key)
        ):
            inside, slash, _ = key[len(prefix) :].partition(delimiter or "\0")
            if delimiter and slash:
                if (folder := prefix + inside + delimiter) not in folders:
                    folders.append(folder)
            else:
                keys.append(key)
        found = [one for one in sorted([*keys, *folders]) if one > after]
        page, more = found[:_PAGE], len(found) > _PAGE
        texts = []
        for one in page:
            if one in folders:
                texts.append(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>")
                continue
            size, tag = len(self.fake.buckets[self.bucket][one]), self.fake.tags[self.bucket, one]
            facts = f"<ETag>{self.fake.listed_tag.format(tag)}</ETag><Size>{size}</Size>"
            facts += "<LastModified>2026-11-28T02:00:00.000Z</LastModified>"
            texts.append(f"<Contents><Key>{escape(one)}</Key>{facts}</Contents>")
        if more:
            texts.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        texts.append(f"<IsTruncated>{str(more).lower()}</IsTruncated>")
        return 200, f"<ListBucketResult>{''.join(texts)}</ListBucketResult>".encode()


def at_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Clients that ask again as often as they would, and do not wait for it."""
    soon = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2), "base": 2}
    return lambda *given, retry_config, **more: make(*given, retry_config=retry_config | {"backoff": soon}, **more)


def served(monkeypatch: Any) -> Iterator[FakeS3]:
    """A server that the environment names, for a fixture. It is near: clients do not wait before they ask it again."""
    obstore = pytest.importorskip("obstore.store")
    for client in ("S3Store", "GCSStore"):
        monkeypatch.setattr(obstore, client, at_once(getattr(obstore, client)))
    bucket._client.cache_clear()
    fake = FakeS3()
    for name, text in fake.environment().items():
        monkeypatch.setenv(name, text)
    try:
        yield fake
    finally:
        fake.close()
