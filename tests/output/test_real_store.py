"""Merges from and into real servers, SeaweedFS as S3 and Azurite (`make test-stores`): their own signatures and
conditions; and through a proxy that refuses, cuts replies, and loses them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import snapshot, write_adapter, write_checkpoint
from real_servers import Proxy, azurite, seaweed

PROGRAMS = {"s3": os.environ.get("ADAPTERTOOL_WEED"), "az": os.environ.get("ADAPTERTOOL_AZURITE")}
pytestmark = pytest.mark.skipif(not any(PROGRAMS.values()), reason="make test-stores")
FAULTS = ("503", "500", "429", "cut", "lost", "drop")
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "az": "AZURE_STORAGE_ENDPOINT"}
Server = tuple[str, dict[str, str]]  # scheme, environment


@pytest.fixture(scope="module", params=PROGRAMS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    program = PROGRAMS[request.param]
    if not program:
        pytest.skip("not given")
    root = tmp_path_factory.mktemp(request.param)
    serve = {"s3": seaweed, "az": azurite}[request.param]
    yield from ((request.param, environment) for environment in serve(program, root))


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
    command = [sys.executable, "-m", "adaptertool", *map(str, arguments), *([] if arguments[0] == "clean" else ["-q"])]
    return subprocess.Popen(command, env=dict(environment))  # type: ignore[call-overload, no-any-return]


def fetched(server: Server, name: str) -> dict[str, bytes]:
    scheme, environment = server
    with pytest.MonkeyPatch.context() as patch:
        for key in environment:
            patch.setenv(key, environment[key])
        from adaptertool.files import upload  # noqa: PLC0415
        from adaptertool.files.address import Address  # noqa: PLC0415

        folder = Address(f"{scheme}:/models/{name}")
        return {key: upload.get(folder / key) or b"" for key in sorted(upload.objects_below(folder))}


def test_out_and_in_again(server: Server, models: Path, tmp_path: Path) -> None:
    """With a weight of 0 the base goes through unchanged: it is then merged from the store into the store."""
    scheme, own = server
    there = f"{scheme}://models"
    assert run(own, "merge", models / "base", models / "lora", "-w", "0", "-o", f"{there}/base").wait() == 0
    assert run(own, "merge", f"{there}/base", models / "lora", "-o", f"{there}/out", "--verify").wait() == 0
    found, local = fetched(server, "out"), snapshot(models / "local")
    assert {name: found[name] for name in found if name.endswith(".safetensors")} == {
        name: local[name] for name in local if name.endswith(".safetensors")
    }
    assert run(own, "verify", f"{there}/out").wait() == 0
    assert run(own, "verify", f"{there}/out", models / "base", models / "lora").wait() == 0
    assert run(own, "merge", f"{there}/base", models / "lora", "-o", tmp_path / "out").wait() == 0
    assert run(own, "merge", models / "base", models / "lora", "-o", f"{there}/out").wait() == 5
    assert run(own, "merge", models / "base", models / "lora", "-o", f"{there}/out", "--force").wait() == 0
    assert fetched(server, "out") == local
    assert run(own, "truncate", models / "lora", "--rank", "2", "-o", f"{there}/cut").wait() == 0
    assert run(own, "merge", models / "base", f"{there}/cut", "-o", tmp_path / "cut").wait() == 0


def test_a_run_that_is_killed_goes_on(server: Server, models: Path) -> None:
    scheme, own = server
    arguments = ("merge", models / "base", models / "lora", "-o", f"{scheme}://models/killed")
    process = run(own, *arguments)
    while process.poll() is None:
        if sum(name.endswith(".json") and name.startswith(".") for name in fetched(server, "killed")) >= 2:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert run(own, *arguments).wait() == 0
    assert fetched(server, "killed") == snapshot(models / "local")
    process = run(own, *arguments[:-1], f"{scheme}://models/cleaned")
    while process.poll() is None:
        if any(name.endswith(".json") and name.startswith(".") for name in fetched(server, "cleaned")):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert run(own, "clean", f"{scheme}://models/cleaned").wait() == 0
    assert fetched(server, "cleaned") == {}


def test_two_at_once(server: Server, models: Path) -> None:
    scheme, own = server
    arguments = ("merge", models / "base", models / "lora", "-o", f"{scheme}://models/both")
    codes = [process.wait() for process in [run(own, *arguments) for _ in range(2)]]
    assert 0 in codes
    if codes != [0, 0]:  # the other came when all was there, or was gone from under it
        assert run(own, *arguments).wait() in (0, 5)
    assert fetched(server, "both") == snapshot(models / "local")


@pytest.mark.parametrize("seed", [1, 2])
def test_behind_faults(server: Server, models: Path, tmp_path: Path, seed: int) -> None:
    """Every second request is spoilt the first time, in each way in turn. Read, written, and both compared."""
    (scheme, own), seen = server, set[tuple[str, str]]()

    def fault(method: str, target: str, _count: int) -> str:
        one = method, re.sub(r"uploadId=[^&]*", "", target)  # which is another for each upload
        if one in seen or "x-id" in target:
            return ""
        seen.add(one)
        return FAULTS[(len(seen) // 2 + seed) % len(FAULTS)] if len(seen) % 2 else ""

    place = f"{scheme}://models/faults-{seed}"
    with Proxy(own[ENDPOINTS[scheme]], fault, delay=0.002) as proxy:
        path = own[ENDPOINTS[scheme]].partition("//")[2].partition("/")[2]
        there = own | {ENDPOINTS[scheme]: f"{proxy.url}/{path}".rstrip("/")}
        assert run(there, "merge", models / "base", models / "lora", "-o", f"{place}/out").wait() == 0
        assert run(there, "merge", f"{place}/out", models / "lora", "-w", "0", "-o", tmp_path / "back").wait() == 0
        assert all(proxy.faults[one] for one in FAULTS)
    assert fetched(server, f"faults-{seed}/out") == (local := snapshot(models / "local"))
    back = snapshot(tmp_path / "back")
    assert all(back[name] == data for name, data in local.items() if name.endswith(".safetensors"))


def test_an_outage_is_told_and_gone_on_from(server: Server, models: Path) -> None:
    """After so many requests all are refused: exit 4, nothing to load, and the same command goes on without."""
    scheme, own = server
    left = [25]

    def fault(_method: str, _target: str, _count: int) -> str:
        left[0] -= 1
        return "403" if left[0] < 0 else ""

    arguments = ("merge", models / "base", models / "lora", "-o", f"{scheme}://models/outage")
    with Proxy(own[ENDPOINTS[scheme]], fault) as proxy:
        path = own[ENDPOINTS[scheme]].partition("//")[2].partition("/")[2]
        there = own | {ENDPOINTS[scheme]: f"{proxy.url}/{path}".rstrip("/")}
        assert run(there, *arguments).wait() == 4
    assert "config.json" not in fetched(server, "outage")
    assert run(own, *arguments).wait() == 0
    assert fetched(server, "outage") == snapshot(models / "local")
