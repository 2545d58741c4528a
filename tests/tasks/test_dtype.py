"""`--dtype`: quantised and dense bases, for merge, wise and methods; what is told of it, and of what is written."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from conftest import FIXTURES, load, lora_factors, main_here, snapshot, write_adapter, write_checkpoint
from oracle import fractions, round_fraction
from quantised_bases import FORMATS, Q, Quantised, X
from rationals import Matrix

import adaptertool as library
from adaptertool.arithmetic import cast, tiling
from adaptertool.codecs import tensors
from adaptertool.errors import NonFiniteError, UnchangedError, UsageError
from adaptertool.files.checkpoint import INDEX
from adaptertool.output.preview import preview

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def base_of(folder: Path, made: Quantised) -> Path:
    plain = {f"{Q}.weight": torch.randn(8, 6).bfloat16(), "model.norm.weight": torch.ones(6)}
    return write_checkpoint(folder, plain | dict(made.tensors), config=CONFIG | {"quantization_config": made.config})


def stored(folder: Path, exact: Matrix) -> bool:
    found = load(folder)[f"{X}.weight"]
    return fractions(found) == [round_fraction(value, found.dtype) for row in exact for value in row]


def test_between_two_quantised_checkpoints(tmp_path: Path) -> None:
    """In different formats; at 0 and 1 each is decoded, and nothing more."""
    one, other = FORMATS["FP8, blocks"](), FORMATS["NF4"]()
    base, tuned = base_of(tmp_path / "base", one), base_of(tmp_path / "tuned", other)
    report = library.wise(base, tuned, tmp_path / "out", [0, 0.3, 1], dtype="bf16", verify=True)
    for alpha in (0, 0.3, 1):
        between = [
            [v + Fraction(alpha) * (w - v) for v, w in zip(*rows, strict=True)]
            for rows in zip(one.exact, other.exact, strict=True)
        ]
        assert stored(tmp_path / "out" / f"alpha-{alpha:.3f}", between)
    assert report.elements_changed is not None and report.elements_changed[0] == 0 < report.elements_changed[1]
    assert library.verify(tmp_path / "out" / "alpha-0.300", base, [tuned], alpha=0.3).ok


def test_zeros_keep_their_sign_and_nothing_is_changed(tmp_path: Path) -> None:
    made = FORMATS["FP8, blocks"]()
    base = base_of(tmp_path / "base", made)
    negative = load(base)[f"{X}.weight"].view(torch.uint8) == 0x80
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (20, 72)))
    report = library.merge(base, [adapter], tmp_path / "out", weights=[0], dtype="bf16")
    assert stored(tmp_path / "out", made.exact) and negative.any()
    assert load(tmp_path / "out")[f"{X}.weight"][negative].signbit().all()
    assert (report.elements_edited, report.elements_changed, report.tensors_cast) == (0, (0,), 1)
    with pytest.raises(UnchangedError):
        library.merge(base, [adapter], tmp_path / "no", weights=[0], dtype="bf16", fail_if_unchanged=True)


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_methods(tmp_path: Path, method: str) -> None:
    """As of a dense base with the very numbers; here float32 holds them."""
    made = FORMATS["FP8, rows"]()
    base = base_of(tmp_path / "base", made)
    dense = dict(load(base)) | {f"{X}.weight": torch.tensor([[float(v) for v in row] for row in made.exact])}
    del dense[f"{X}.weight_scale"]
    plain = write_checkpoint(tmp_path / "plain", dense, config=CONFIG)
    sources = [write_adapter(tmp_path / name, lora_factors(X, (20, 72))) for name in "ab"]
    settings = {"density": 0.5} if method == "ties" else {}
    library.merge(base, sources, tmp_path / "one", method=method, dtype="f32", **settings)
    library.merge(plain, sources, tmp_path / "two", method=method, **settings)
    assert load(tmp_path / "one")[f"{X}.weight"].equal(load(tmp_path / "two")[f"{X}.weight"])


@pytest.mark.parametrize("name", ["FP8, blocks", "INT4, ordered", "FP4", "GPTQ", "AWQ"])
def test_the_same_bytes_in_any_blocks(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = FORMATS[name]()
    base = base_of(tmp_path / "base", made)
    shape = (len(made.exact), len(made.exact[0]))
    factors = lora_factors(X, shape) | {f"{X}.lora_magnitude_vector": torch.rand(shape[0]) + 0.5}
    adapters = [
        write_adapter(tmp_path / "a", factors, use_dora=True),
        write_adapter(tmp_path / "b", lora_factors(Q, (8, 6))),
    ]
    outs = []
    for number, size in enumerate((1 << 20, 100, 7)):
        for module, what in ((tiling, "BLOCK_ELEMENTS"), (cast, "BLOCK_ELEMENTS"), (cast, "_PART"),
                             (tensors, "_DECODED"), (tensors, "BAND")):  # fmt: skip
            monkeypatch.setattr(module, what, size)
        for one, adapter in enumerate(adapters):
            out = tmp_path / f"{number}-{one}"
            library.merge(base, [adapter], out, dtype="bf16", threads=1 + number)
            outs.append((one, snapshot(out)))
    assert all(content == next(first for kind, first in outs if kind == one) for one, content in outs)


def test_a_dense_base_is_cast(tmp_path: Path) -> None:
    """What is stored wider than the model as a whole stays so."""
    numbers = {"a.weight": torch.randn(30, 20).bfloat16(), "router.bias": torch.randn(7), "p": torch.arange(3)}
    config = {"model_type": "llama", "text_config": {"torch_dtype": "bfloat16"}}
    base = write_checkpoint(tmp_path / "base", numbers, config=config)
    small = {name: factor * 1e-3 for name, factor in lora_factors("a", (30, 20)).items()}
    adapter = write_adapter(tmp_path / "adapter", small)
    report = library.merge(base, [adapter], tmp_path / "f32", dtype="f32", verify=True)
    wide = load(tmp_path / "f32")
    assert [wide[name].dtype for name in numbers] == [torch.float32, torch.float32, torch.int64]
    assert json.loads((tmp_path / "f32" / "config.json").read_text())["text_config"] == {"torch_dtype": "float32"}
    assert report.survival is not None and report.survival[0] is not None and report.survival[0] > 0.98
    assert library.verify(tmp_path / "f32", base, [adapter]).ok
    again = library.merge(tmp_path / "f32", [adapter], tmp_path / "f16", dtype="f16")
    assert load(tmp_path / "f16")["router.bias"].dtype == torch.float16 and again.tensors_cast == 1
    same = library.merge(base, [adapter], tmp_path / "bf16", dtype="bf16")
    library.merge(base, [adapter], tmp_path / "plain")
    assert same.tensors_cast == 0 and load(tmp_path / "bf16")["a.weight"].equal(load(tmp_path / "plain")["a.weight"])


def test_numbers_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    numbers = {"a.weight": torch.ones(3, 4).bfloat16(), "b.weight": torch.full((3, 4), 1e6).bfloat16()}
    base = write_checkpoint(tmp_path / "base", numbers)
    adapter = write_adapter(tmp_path / "adapter", lora_factors("a", (3, 4)))
    with pytest.raises(NonFiniteError, match=r"b\.weight.*beyond the range of F16"):
        library.merge(base, [adapter], tmp_path / "out", dtype="f16")
    assert not (tmp_path / "out").exists()


def test_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_of(tmp_path / "base", FORMATS["NVFP4 of ModelOpt"]())
    adapter = write_adapter(tmp_path / "adapter", lora_factors(Q, (8, 6)))
    plan = preview(library.prepare_merge(base, [adapter], dtype="f32"), tmp_path / "out")
    assert {one.name: one.action for one in plan.tensors} == {
        f"{Q}.weight": "edit", f"{X}.weight": "cast", "model.norm.weight": "copy"}  # fmt: skip
    assert sum(one.bytes for one in plan.tensors) == 4 * (48 + 20 * 64 + 6) < plan.disk_needed
    arguments = ["merge", str(base), str(adapter), "-o", str(tmp_path / "out"), "--dtype", "bf16"]
    assert main_here(arguments, monkeypatch) == 0
    out, err = capsys.readouterr()
    assert "1 edited, 1 copied, 1 cast" in out
    assert "decoded from NVFP4 and stored as BF16: 1 of 3 tensors" in err
    assert "left out, of use to codes only: 1 scales" in err
    manifest = json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())
    assert manifest["recipe"]["dtype"] == "bf16"
    assert main_here([*arguments[:-1], "f8", "--force"], monkeypatch) == 2


def test_where_it_has_no_meaning() -> None:
    base, adapter, tuned = (FIXTURES / name for name in ("base", "lora", "tuned"))
    with pytest.raises(UsageError, match="dtype is bf16, f16, f32"):
        library.prepare_merge(base, [adapter], dtype="fp8")
    with pytest.raises(UsageError, match="for checkpoints"):
        library.prepare_wise(base, adapter, 0.5, dtype="bf16", as_adapter=True)
    with pytest.raises(UsageError, match="Fisher"):
        library.prepare_wise(base, tuned, 0.5, dtype="bf16", fisher=(base, base))


def test_inspect_and_diff(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", FORMATS["NF4"]())
    adapter = write_adapter(tmp_path / "adapter", lora_factors(Q, (8, 6)))
    library.merge(base, [adapter], tmp_path / "out", dtype="f32")
    facts = library.inspect(base).checkpoint
    assert facts is not None and facts.quantised is not None
    said = "1 weight in NF4 of bitsandbytes (4.867 bits each with scales, 96.4% of all numbers)"
    assert facts.quantised.endswith(f"bitsandbytes: {said}")
    for pair in ((base, tmp_path / "out"), (tmp_path / "out", base)):
        found = {one.name: one for one in library.diff(*pair).tensors}
        assert found.keys() == {f"{Q}.weight", f"{X}.weight"}
        assert found[f"{X}.weight"].rel_error < 1e-7 < 1e-2 < found[f"{Q}.weight"].rel_error  # type: ignore[operator]


@pytest.mark.parametrize("name", ["FP8, blocks", "GPTQ", "NF4, nested"])
def test_scales_in_another_shard_and_a_run_that_goes_on(tmp_path: Path, name: str) -> None:
    made = FORMATS[name]()
    tensors = dict(sorted(made.tensors.items())) | {f"{Q}.weight": torch.randn(8, 6).bfloat16()}
    config = CONFIG | {"quantization_config": made.config}
    base = write_checkpoint(tmp_path / "base", tensors, shards=len(tensors), config=config)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (len(made.exact), len(made.exact[0]))))
    library.merge(base, [adapter], tmp_path / "once", dtype="bf16", threads=2)
    manifest = json.loads((tmp_path / "once" / "adaptertool.manifest.json").read_text())
    for file, facts in manifest["inputs"]["base"].items():
        assert facts["blake3"] == blake3((base / file).read_bytes()).hexdigest()
    shards = {path.name for path in (tmp_path / "once").glob("*.safetensors")}
    assert shards == set(json.loads((tmp_path / "once" / INDEX).read_text())["weight_map"].values())
    written = 0

    def stop(size: int) -> None:
        nonlocal written
        written += size
        if written > 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.merge(base, [adapter], tmp_path / "out", dtype="bf16", threads=1, progress=stop)
    assert not (tmp_path / "out").exists()
    library.merge(base, [adapter], tmp_path / "out", dtype="bf16", threads=1)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "once")


def test_the_index_of_a_model_of_a_pipeline(tmp_path: Path) -> None:
    """Its name is another; it follows too."""
    weights, index = tmp_path / "base", "diffusion_pytorch_model.safetensors.index.json"
    base = write_checkpoint(weights, {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}, shards=2)
    text = (base / INDEX).read_text().replace("model-0", "diffusion_pytorch_model-0")
    (base / index).write_text(text)
    (base / INDEX).unlink()
    for file in base.glob("model-*"):
        file.rename(base / f"diffusion_pytorch_{file.name}")
    adapter = write_adapter(tmp_path / "adapter", lora_factors("a", (4, 4)))
    library.merge(base, [adapter], tmp_path / "out", dtype="bf16")
    assert json.loads((tmp_path / "out" / index).read_text())["metadata"]["total_size"] == 2 * 32
