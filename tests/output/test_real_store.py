"""Merges from and into a real S3 server (SeaweedFS, `make test-stores`): its own signatures and conditions."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import snapshot, write_adapter, write_checkpoint

WEED = os.environ.get("ADAPTERTOOL_WEED")
pytestmark = pytest.mark.skipif(not WEED, reason="make test-stores")
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
PORTS += ("s3.port", "s3.port.grpc")
KEYS = {"accessKey": "AKIDTEST", "secretKey": "SECRETTEST"}


def free_ports(count: int) -> list[int]:
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in opened]
    for one in opened:
        one.close()
    return ports


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which the bucket `models` is."""
    root = tmp_path_factory.mktemp("weed")
    identity = {"name": "t", "credentials": [KEYS], "actions": ["Admin", "Read", "Write", "List"]}
    (root / "config").write_text(json.dumps({"identities": [identity]}))
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    here = [
        "-ip",
        "127.0.0.1",
        "-ip.bind",
        "127.0.0.1",
        "-volume.max=100",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
    ]
    s3 = ["-s3", "-s3.config", str(root / "config"), "-s3.port.iceberg", "0", "-s3.port.lance", "0"]
    chosen = [part for name, port in ports.items() for part in (f"-{name}", str(port))]
    command = [str(WEED), "server", "-dir", str(root), *here, *s3, *chosen]
    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        environment = os.environ | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
            "AWS_ACCESS_KEY_ID": KEYS["accessKey"],
            "AWS_SECRET_ACCESS_KEY": KEYS["secretKey"],
            "AWS_REGION": "us-east-1",
        }
        options = "client_options={'allow_http': True}"
        make = f"import obstore.store as s, obstore; obstore.put(s.S3Store('models', {options}), 'x', b'')"
        for _ in range(20):  # the server makes the bucket of a first object
            done = subprocess.run([sys.executable, "-c", make], env=environment, capture_output=True, check=False)
            if done.returncode == 0:
                break
            time.sleep(1)
        yield environment
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch  # noqa: PLC0415

    root = tmp_path_factory.mktemp("models")
    names = [f"model.layers.{number}.mlp.up_proj" for number in range(12)]
    write_checkpoint(root / "base", {f"{name}.weight": torch.randn(1024, 2048).bfloat16() for name in names}, shards=6)
    factors = {f"{name}.lora_A.weight": torch.randn(4, 2048) for name in names}
    factors |= {f"{name}.lora_B.weight": torch.randn(1024, 4) for name in names}
    write_adapter(root / "lora", factors)
    assert run(os.environ, "merge", root / "base", root / "lora", "-o", root / "local").wait() == 0
    return root


def run(environment: object, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "adaptertool", *map(str, arguments), "-q"]
    return subprocess.Popen(command, env=dict(environment))  # type: ignore[call-overload, no-any-return]


def fetched(environment: dict[str, str], name: str) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        for key in environment:
            patch.setenv(key, environment[key])
        from adaptertool.files import upload  # noqa: PLC0415
        from adaptertool.files.address import Address  # noqa: PLC0415

        folder = Address(f"s3:/models/{name}")
        return {key: upload.get(folder / key) or b"" for key in sorted(upload.objects_below(folder))}


def test_out_and_in_again(server: dict[str, str], models: Path, tmp_path: Path) -> None:
    """With a weight of 0 the base goes through unchanged: it is then merged from the store into the store."""
    assert run(server, "merge", models / "base", models / "lora", "-w", "0", "-o", "s3://models/base").wait() == 0
    assert run(server, "merge", "s3://models/base", models / "lora", "-o", "s3://models/out").wait() == 0
    found, local = fetched(server, "out"), snapshot(models / "local")
    assert {name: found[name] for name in found if name.endswith(".safetensors")} == {
        name: local[name] for name in local if name.endswith(".safetensors")
    }
    assert run(server, "verify", "s3://models/out").wait() == 0
    assert run(server, "verify", "s3://models/out", models / "base", models / "lora").wait() == 0
    assert run(server, "merge", "s3://models/base", models / "lora", "-o", tmp_path / "out").wait() == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_that_is_killed_goes_on(server: dict[str, str], models: Path, count: int) -> None:
    """After so many receipts."""
    out = f"killed-{count}"
    arguments = ("merge", models / "base", models / "lora", "-o", f"s3://models/{out}")
    process = run(server, *arguments)
    while process.poll() is None:
        if sum(name.endswith(".json") and name.startswith(".") for name in fetched(server, out)) >= count:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert run(server, *arguments).wait() == 0
    assert fetched(server, out) == snapshot(models / "local")


def test_two_at_once(server: dict[str, str], models: Path) -> None:
    arguments = ("merge", models / "base", models / "lora", "-o", "s3://models/both")
    codes = [process.wait() for process in [run(server, *arguments) for _ in range(2)]]
    assert 0 in codes
    if codes != [0, 0]:  # the other came when all was there, or was gone from under it
        assert run(server, *arguments).wait() in (0, 5)
    assert fetched(server, "both") == snapshot(models / "local")
