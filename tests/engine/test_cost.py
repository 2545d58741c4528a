"""What a run would cost, held against sums that are made here by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import PREFIX, adaptertool, write_sparse

import adaptertool as product
from adaptertool.engine import cost
from adaptertool.engine.cost import Extra
from adaptertool.errors import UsageError
from adaptertool.render.cost import cost_lines, duration
from adaptertool.reports.cost import CostReport
from adaptertool.spec.plan import Plan

# bf16: in each of three shards a tensor that is edited (1,000 × 200) and one that is copied (100,000; 50,000; none)
ROWS, COLUMNS, RANK = 1000, 200, 8
COPIED = (100_000, 50_000, 0)
FACTORS = 4 * RANK * (ROWS + COLUMNS)  # bytes for each edited tensor


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    base, adapter = tmp_path / "base", tmp_path / "a"
    base.mkdir()
    adapter.mkdir()
    weight_map, factors = {}, {}
    for number, copied in enumerate(COPIED):
        shard, module = f"model-{number + 1:05}-of-00003.safetensors", f"m.layers.{number}.up"
        tensors = {f"{module}.weight": ("BF16", [ROWS, COLUMNS], 2 * ROWS * COLUMNS)}
        tensors |= {f"m.norm{number}.weight": ("BF16", [copied], 2 * copied)} if copied else {}
        write_sparse(base / shard, tensors, {})
        weight_map |= dict.fromkeys(tensors, shard)
        factors[f"{PREFIX}{module}.lora_A.weight"] = ("F32", [RANK, COLUMNS], 4 * RANK * COLUMNS)
        factors[f"{PREFIX}{module}.lora_B.weight"] = ("F32", [ROWS, RANK], 4 * RANK * ROWS)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_sparse(adapter / "adapter_model.safetensors", factors, {})
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8}))
    return product.prepare_merge(base, [adapter])


@pytest.fixture(autouse=True)
def round_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COPY": 1e-6, "EDIT": 1e-5, "RANK": 1e-6, "START": 1.0, "TENSOR": 0.1, "SHA256": 1e-7}.items():
        monkeypatch.setattr(cost, name, value)


def told(plan: Plan, rate: int | str, nodes: int = 1, extra: Extra = cost.NOTHING_MORE, threads: int = 2) -> CostReport:
    report = product.preview(plan, "not-written", rate=rate, nodes=nodes, threads=threads, extra=extra)
    assert report.cost is not None
    return report.cost


def size(plan: Plan, *shards: int) -> int:
    return sum((plan.base / f"model-{number + 1:05}-of-00003.safetensors").stat().st_size for number in shards)


def test_one_node(plan: Plan) -> None:
    found, index = told(plan, "1MB/s"), (plan.base / "model.safetensors.index.json").stat().st_size
    weights = size(plan, 0, 1, 2)
    assert found.bytes_written == weights + index
    assert found.bytes_read == weights + 3 * FACTORS + index
    assert found.bytes_of_one == 2 * weights + 3 * FACTORS
    assert found.seconds_transfer == pytest.approx((2 * weights + 3 * FACTORS) / 1e6)
    data = 2 * (3 * ROWS * COLUMNS + sum(COPIED))
    assert found.seconds_cpu == pytest.approx((data * 1e-6 + 3 * ROWS * COLUMNS * 1.8e-5) / 2)
    assert found.seconds_planning == pytest.approx(1 + 5 * 0.1)
    assert found.bound == "cpu"
    assert found.seconds == pytest.approx(1.5 + found.seconds_cpu + 2 * index / 1e6)
    assert found.cpu_seconds == pytest.approx(1.5 + 2 * found.seconds_cpu)
    assert (found.nodes, found.nodes_busy, found.shards_of_one) == (1, 1, 3)


def test_two_nodes_share_by_size(plan: Plan) -> None:
    """The largest shard goes to one, the other two to the other; the adapter is hashed by what finishes."""
    found, index = told(plan, 1_000_000, 2), (plan.base / "model.safetensors.index.json").stat().st_size
    assert (found.nodes_busy, found.shards_of_one) == (2, 2)
    assert found.bytes_of_one == 2 * size(plan, 1, 2) + 2 * FACTORS
    adapter = sum(path.stat().st_size for path in plan.sources[0].iterdir())
    assert found.bytes_read == size(plan, 0, 1, 2) + 3 * FACTORS + index + adapter
    assert found.seconds_shared == pytest.approx((found.bytes_read + found.bytes_written) / 1e6)
    data = 2 * (2 * ROWS * COLUMNS + COPIED[1])
    assert found.seconds_cpu == pytest.approx((data * 1e-6 + 2 * ROWS * COLUMNS * 1.8e-5) / 2)


def test_more_nodes_than_shards(plan: Plan) -> None:
    assert (told(plan, "2GB/s", 16).nodes_busy, told(plan, "2GB/s", 16).nodes) == (3, 16)
    assert told(plan, "2GB/s", 3).seconds == told(plan, "2GB/s", 16).seconds


def test_bound_by_transfer(plan: Plan) -> None:
    found = told(plan, 1000)
    assert found.bound == "transfer"
    assert found.seconds > found.seconds_transfer > found.seconds_cpu


def test_what_is_done_beside_the_merge(plan: Plan) -> None:
    plain = told(plan, "1MB/s")
    hashed = told(plan, "1MB/s", extra=Extra(sha256=True))
    assert hashed.cpu_seconds - plain.cpu_seconds == pytest.approx(1e-7 * plain.bytes_of_one)
    verified, read = told(plan, "1MB/s", extra=Extra(verify=True)), size(plan, 0, 1, 2) + 3 * FACTORS
    assert verified.bytes_of_one == 2 * read + 2 * size(plan, 0, 1, 2)
    assert verified.seconds_cpu == pytest.approx(2.9 * plain.seconds_cpu)


def test_alphas_are_each_written(plan: Plan) -> None:
    sweep = product.prepare_wise(plan.base, plan.sources[0], [0.25, 0.5])
    one, two = told(plan, "1MB/s"), told(sweep, "1MB/s")
    assert two.bytes_of_one - one.bytes_of_one == size(plan, 0, 1, 2)
    assert two.seconds_cpu == pytest.approx(2 * one.seconds_cpu)
    nothing = told(product.prepare_wise(plan.base, plan.sources[0], [0]), "1MB/s")  # copied, every byte
    assert nothing.seconds_cpu == pytest.approx((3 * ROWS * COLUMNS + sum(COPIED)) * 2e-6 / 2)


def test_requests(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "REQUEST", 10**9)
    found = told(plan, "1MB/s")
    assert (found.requests_read, found.requests_written) == (1 + 3 + (1 + 2 * 3 + 1), 1 + 3 + 1)


@pytest.mark.parametrize("rate", ["fast", "0", "-1GB/s", "2GB/h", "1e9", 0, -5, "", 1.5])
def test_rates_that_are_none(plan: Plan, rate: object) -> None:
    with pytest.raises(UsageError, match="such as 2GB/s"):
        product.preview(plan, "not-written", rate=rate)  # type: ignore[arg-type]


def test_no_nodes(plan: Plan) -> None:
    with pytest.raises(UsageError, match="nodes must be"):
        told(plan, "1GB/s", 0)


def test_without_a_rate_there_is_no_cost(plan: Plan) -> None:
    assert product.preview(plan, "not-written").cost is None


def test_what_it_does_not_know_is_said(plan: Plan) -> None:
    assert any("other users" in text for text in told(plan, 1).unknown)
    wider = product.prepare_merge(plan.base, [plan.sources[0]], dtype="f32")
    assert any("F32 have not been measured" in text for text in told(wider, 1).unknown)
    ties = product.prepare_merge(plan.base, [plan.sources[0]], method="ties", density="0.5")
    assert any("methods" in text for text in told(ties, 1).unknown)


def test_text(plan: Plan) -> None:
    lines = "\n".join(cost_lines(told(plan, "1GB/s", 4)))
    for text in ("each of 4 nodes", "1 GB/s", "all nodes share", "1 shard,", "1 node has none", "measured", "unknown"):
        assert text in lines, lines
    assert [duration(value) for value in (0.53, 9.96, 75, 600, 7200)] == ["0.53 s", "10 s", "75 s", "10 min", "2 h"]


def test_command_line(plan: Plan) -> None:
    call = ["merge", plan.base, *plan.sources, "-o", "not-written"]
    done = adaptertool(*call, "--dry-run", "--rate", "2GB/s", "--nodes", "2", "--json")
    assert json.loads(done.stdout)["cost"]["rate"] == 2_000_000_000
    for options in (["--rate", "2GB/s"], ["--dry-run", "--nodes", "2"], ["--dry-run", "--rate", "9" * 400]):
        rewider = adaptertool(*call, *options)
        assert rewider.returncode == 2
        assert "--rate" in rewider.stderr
