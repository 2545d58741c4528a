"""GGUF adapters: what alpha, the turned embedding, stacks of experts and blocks of Q8_0 mean, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import adaptertool as command
from conftest import lora_factors, write_adapter
from gguf_files import Q8_0, field, of_arrays, packed, read_model, text, write_lora, write_model

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError, UsageError
from adaptertool.formats import recognised

gguf = pytest.importorskip("gguf")

Arrays = dict[str, np.ndarray[Any, Any]]
WEIGHT, EMBEDDING, EXPERTS = "blk.0.attn_v.weight", "token_embd.weight", "blk.0.ffn_up_exps.weight"
NORM = "blk.0.attn_norm.weight"
SHAPES = {EMBEDDING: (10, 6), WEIGHT: (8, 6), EXPERTS: (3, 4, 6), "output.weight": (10, 6), NORM: (6,)}
RANK = 4


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def base_of(path: Path, dtype: Any = np.float32, **shapes: tuple[int, ...]) -> Path:
    return write_model(path, {name: normal(*shape).astype(dtype) for name, shape in {**SHAPES, **shapes}.items()})


def factors(name: str = WEIGHT, a: tuple[int, ...] = (RANK, 6), b: tuple[int, ...] = (8, RANK)) -> Arrays:
    return {f"{name}.lora_a": normal(*a, seed=1), f"{name}.lora_b": normal(*b, seed=2)}


def require(base: Path, out: Path, exact: dict[str, np.ndarray[Any, Any]]) -> None:
    """The output has these values, rounded, and else the bits of the base."""
    before, after = read_model(base), read_model(out)
    assert list(before) == list(after)
    for name, array in before.items():
        assert (after[name] == (exact[name].astype(array.dtype) if name in exact else array)).all(), name


@pytest.mark.parametrize(("alpha", "scale"), [(8.0, 2.0), (None, 1.0), (0.0, 1.0), (-1.5, -0.375)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_alpha_is_divided_by_the_rank(tmp_path: Path, alpha: float | None, scale: float, dtype: Any) -> None:
    """As llama.cpp has it: without alpha, or with 0, the scale is 1."""
    base, own = base_of(tmp_path / "base.gguf", dtype), factors()
    lora = write_lora(tmp_path / "lora.gguf", own, alpha=alpha)
    adaptertool.merge(base, [lora], tmp_path / "out.gguf")
    a, b = (own[f"{WEIGHT}.lora_{role}"].astype(np.float64) for role in "ab")
    require(base, tmp_path / "out.gguf", {WEIGHT: read_model(base)[WEIGHT].astype(np.float64) + scale * (b @ a)})
    assert adaptertool.verify(tmp_path / "out.gguf", base, [lora], strict=True).ok


def test_the_embedding_is_turned(tmp_path: Path) -> None:
    base, own = base_of(tmp_path / "base.gguf"), factors(EMBEDDING, (10, RANK), (6, RANK))
    lora = write_lora(tmp_path / "lora.gguf", own)
    adaptertool.merge(base, [lora], tmp_path / "out.gguf")
    a, b = (own[f"{EMBEDDING}.lora_{role}"].astype(np.float64) for role in "ab")
    require(base, tmp_path / "out.gguf", {EMBEDDING: read_model(base)[EMBEDDING].astype(np.float64) + 2 * (a @ b.T)})


def test_experts_are_stacked(tmp_path: Path) -> None:
    base, own = base_of(tmp_path / "base.gguf"), factors(EXPERTS, (3, RANK, 6), (3, 4, RANK))
    lora = write_lora(tmp_path / "lora.gguf", own)
    adaptertool.merge(base, [lora], tmp_path / "out.gguf")
    a, b = (own[f"{EXPERTS}.lora_{role}"].astype(np.float64) for role in "ab")
    require(base, tmp_path / "out.gguf", {EXPERTS: read_model(base)[EXPERTS].astype(np.float64) + 2 * (b @ a)})
    assert adaptertool.inspect(lora, base).refusal is None
    with pytest.raises(UnsupportedError, match="factors for a stack of experts"):
        adaptertool.sum_adapters([lora, lora], tmp_path / "sum.gguf")


def test_factors_in_blocks(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", {WEIGHT: normal(8, 64)})
    own = {f"{WEIGHT}.lora_a": normal(32, 64, seed=1), f"{WEIGHT}.lora_b": normal(8, 32, seed=2)}
    kind = gguf.GGMLQuantizationType.Q8_0
    blocks = {key: gguf.quants.quantize(array, kind) for key, array in own.items()}
    tensors = {key: (Q8_0, own[key].shape, array.tobytes()) for key, array in blocks.items()}
    fields = [field("general.architecture", "llama"), field("adapter.type", "lora"), field("adapter.lora.alpha", 8.0)]
    (tmp_path / "lora.gguf").write_bytes(packed(tensors, fields))
    adaptertool.merge(base, [tmp_path / "lora.gguf"], tmp_path / "out.gguf")
    a, b = (gguf.quants.dequantize(blocks[f"{WEIGHT}.lora_{role}"], kind).astype(np.float64) for role in "ab")
    require(base, tmp_path / "out.gguf", {WEIGHT: read_model(base)[WEIGHT] + b @ a / 4})


REFUSED = {
    "another architecture": ({"arch": "qwen2"}, (), factors(), MismatchError, "for the architecture qwen2.*is llama"),
    "aLoRA": ({}, [field("adapter.alora.invocation_tokens", 1)], factors(), UnsupportedError, "aLoRA acts from"),
    "a field": ({}, [field("adapter.quite_new", 1)], factors(), UnsupportedError, "quite_new: this field is not"),
    "another type": ({"kind": "ia3"}, [], factors(), UnsupportedError, "adapter.type is ia3"),
    "alpha a text": ({"alpha": None}, [field("adapter.lora.alpha", "8")], factors(), InputError, "is 8; it is to be"),
    "alpha whole": ({"alpha": None}, [field("adapter.lora.alpha", 8)], factors(), InputError, "is 8; it is to be"),
    "alpha nan": ({"alpha": float("nan")}, [], factors(), InputError, "alpha is nan"),
    "a norm": ({}, [], {**factors(), NORM: normal(6)}, UnsupportedError, "leaves .* out"),
    "a tensor": ({}, [], {**factors(), "blk.0.odd": normal(6)}, UnsupportedError, "odd: it is neither"),
    "half": ({}, [], {f"{WEIGHT}.lora_a": normal(4, 6)}, InputError, r"attn_v.weight.lora_b, and the other half"),
    "ranks": ({}, [], factors(b=(8, 3)), InputError, "lora_a F32 4×6 and lora_b F32 8×3; these make no product"),
    "dimensions": ({}, [], factors(a=(3, 4, 6)), InputError, "make no product"),
    "no rank": ({}, [], factors(a=(0, 6), b=(8, 0)), InputError, "make no product"),
    "vectors": ({}, [], factors(a=(4,), b=(4,)), InputError, "make no product"),
    "embedding not turned": ({}, [], factors(EMBEDDING, (RANK, 6), (10, RANK)), InputError, "make no product|must be"),
    "integers": ({}, [], {key: array.astype(np.int32) for key, array in factors().items()}, UnsupportedError, "is I32"),
    "no tensors": ({}, [], {}, InputError, "holds no tensors"),
    "shape": ({}, [], factors(b=(9, RANK)), MismatchError, "must be 8×4, but it is F32 9×4"),
    "transposed": ({}, [], factors(a=(RANK, 8), b=(6, RANK)), MismatchError, "attn_v.weight is F32 8×6"),
    "stack": ({}, [], factors(EXPERTS, (2, RANK, 6), (2, 4, RANK)), MismatchError, "stack of 2×4 and 6 inputs"),
    "matrix on a stack": ({}, [], factors(EXPERTS, (RANK, 6), (4, RANK)), MismatchError, "experts"),
    "name": ({}, [], factors("blk.7.attn_v.weight"), MismatchError, r"blk\.7\.attn_v\.weight  nearest: .*attn_v"),
    "name of a checkpoint": ({}, [], factors("odd.v_proj.weight"), MismatchError, "have no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(tmp_path: Path, case: str) -> None:
    options, more, own, error, match = REFUSED[case]
    base, lora = base_of(tmp_path / "base.gguf"), write_lora(tmp_path / "lora.gguf", own, *more, **options)
    if case == "another type":
        lora.write_bytes(lora.read_bytes().replace(text("lora"), text("ia3") + b"")[:None])
        fields = [field("general.architecture", "llama"), field("adapter.type", "ia3")]
        lora.write_bytes(packed(of_arrays(own), fields))
    assert recognised(lora) is not None
    with pytest.raises(error, match=match):
        adaptertool.merge(base, [lora], tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    try:
        assert adaptertool.inspect(lora, base).refusal
    except InputError as refused:
        assert str(lora) in str(refused)


def test_a_control_vector_is_none(tmp_path: Path) -> None:
    fields = [field("general.architecture", "controlvector"), field("controlvector.model_hint", "llama")]
    (tmp_path / "c.gguf").write_bytes(packed(of_arrays({"direction.1": normal(6)}), fields))
    with pytest.raises(UnsupportedError, match="is a control vector"):
        adaptertool.merge(base_of(tmp_path / "base.gguf"), [tmp_path / "c.gguf"], tmp_path / "out.gguf")


def test_a_damaged_adapter_says_so(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora.gguf", factors())
    lora.write_bytes(lora.read_bytes()[:-64])
    with pytest.raises(InputError, match=r"lora\.gguf is cut short"):
        adaptertool.merge(base_of(tmp_path / "base.gguf"), [lora], tmp_path / "out.gguf")


def test_what_is_tied_and_what_is_quantised_is_refused(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora.gguf", factors(EMBEDDING, (10, RANK), (6, RANK)))
    tied = write_model(tmp_path / "tied.gguf", {EMBEDDING: normal(10, 6)})
    with pytest.raises(UnsupportedError, match=r"may be tied: there is no output\.weight, in whose place it is used"):
        adaptertool.merge(tied, [lora], tmp_path / "out.gguf")
    head = write_lora(tmp_path / "head.gguf", factors("output.weight", (RANK, 6), (10, RANK)))
    with pytest.raises(MismatchError, match=r"is tied: its head is token_embd\.weight, the embedding\. Merge into"):
        adaptertool.merge(tied, [head], tmp_path / "out.gguf")
    blocks = tmp_path / "q8.gguf"
    blocks.write_bytes(packed({WEIGHT: (Q8_0, (8, 32), bytes(272))}, [field("general.architecture", "llama")]))
    lora = write_lora(tmp_path / "lora.gguf", factors(a=(RANK, 32)))
    with pytest.raises(UnsupportedError, match=r"looks quantised .it is stored as Q8_0.*llama-quantize"):
        adaptertool.merge(blocks, [lora], tmp_path / "out.gguf")


def test_sums_and_truncations_are_gguf(tmp_path: Path) -> None:
    """Of an embedding too, whose factors are turned."""
    base = base_of(tmp_path / "base.gguf", np.float32)
    one = write_lora(tmp_path / "a.gguf", {**factors(), **factors(EMBEDDING, (10, RANK), (6, RANK))})
    other = write_lora(tmp_path / "b.gguf", factors(a=(2, 6), b=(8, 2)), alpha=3)
    adaptertool.sum_adapters([one, other], tmp_path / "sum.gguf", weights=["1", "-0.5"])
    assert read_model(tmp_path / "sum.gguf")[f"{WEIGHT}.lora_a"].shape == (RANK + 2, 6)
    adaptertool.merge(base, [one, other], tmp_path / "both.gguf", weights=["1", "-0.5"])
    adaptertool.merge(base, [tmp_path / "sum.gguf"], tmp_path / "summed.gguf")
    near = read_model(tmp_path / "both.gguf")
    for name, array in read_model(tmp_path / "summed.gguf").items():
        assert np.abs(array - near[name]).max() < 1e-5
    adaptertool.truncate(tmp_path / "sum.gguf", tmp_path / "cut.gguf", rank=1)
    cut = read_model(tmp_path / "cut.gguf")
    assert cut[f"{EMBEDDING}.lora_a"].shape == (10, 1) and cut[f"{EMBEDDING}.lora_b"].shape == (6, 1)
    a, b = (read_model(one)[f"{EMBEDDING}.lora_{role}"].astype(np.float64) for role in "ab")
    change = cut[f"{EMBEDDING}.lora_a"].astype(np.float64) @ cut[f"{EMBEDDING}.lora_b"].T
    u, values, v = np.linalg.svd(2 * a @ b.T)
    alpha = gguf.GGUFReader(tmp_path / "cut.gguf").fields["adapter.lora.alpha"].contents()
    assert np.abs(alpha * change - values[0] * np.outer(u[:, 0], v[0])).max() < 1e-5


def test_names_of_gguf_are_not_mixed_with_others(tmp_path: Path) -> None:
    lora, other = (write_lora(tmp_path / f"{arch}.gguf", factors(), arch=arch) for arch in ("llama", "qwen2"))
    peft = write_adapter(tmp_path / "peft", lora_factors("model.layers.0.self_attn.v_proj", (8, 6)))
    for some in ([peft, lora], [lora, peft], [lora, other]):
        with pytest.raises(UnsupportedError, match=r"have the names of GGUF and others, or of two architectures"):
            adaptertool.sum_adapters(some, tmp_path / "s.gguf", to="gguf")
    for run in (
        lambda: adaptertool.sum_adapters([lora, lora], tmp_path / "s", to="peft"),
        lambda: adaptertool.truncate(lora, tmp_path / "s", rank=1, to="peft"),
        lambda: adaptertool.convert(lora, tmp_path / "s", to="peft"),
    ):
        with pytest.raises(UsageError, match=r"is read with the names that GGUF has, and peft has others"):
            run()


def test_every_command(tmp_path: Path) -> None:
    base, lora = base_of(tmp_path / "base.gguf", np.float16), write_lora(tmp_path / "lora.gguf", factors())
    out = tmp_path / "out.gguf"
    assert command("merge", base, lora, lora, "-o", out, "-w", "1", "-w", "0.5").returncode == 0
    adaptertool.wise(base, lora, tmp_path / "half.gguf", "0.5")
    assert adaptertool.verify(tmp_path / "half.gguf", base, [lora], alpha="0.5").ok
    assert adaptertool.verify(out, base, [lora, lora], weights=[1, 0.5]).ok
    assert not adaptertool.verify(out, base, [lora]).ok
    report = adaptertool.inspect(lora, base)
    assert report.adapter is not None and report.fits and report.adapter.modules[0].rank == RANK
    assert not adaptertool.diff(lora, write_lora(tmp_path / "b.gguf", factors(), alpha=3)).tensors
    with pytest.raises(InputError, match=r"base\.gguf is a GGUF model, not an adapter"):
        adaptertool.merge(base, [base], tmp_path / "s.gguf")
    with pytest.raises(InputError, match="is an adapter, not a checkpoint"):
        adaptertool.merge(lora, [lora], tmp_path / "s.gguf")
