"""`--quantise keep`: codes and scales against rationals; what is told of it; what is refused."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import survival
import torch
from conftest import FIXTURES, load, main_here, same_bits, snapshot, write_adapter
from kept import FORMATS, base_of, factors_of, judge
from quantised_bases import FORMATS as BASES
from quantised_bases import Quantised, X
from rationals import Matrix, delta, dora_exactly

import adaptertool as library
from adaptertool.arithmetic import tiling
from adaptertool.errors import NonFiniteError, UnsupportedError
from adaptertool.output.preview import preview


@pytest.mark.long("name")
@pytest.mark.parametrize("size", [0.003, 0.1, 3.0])
@pytest.mark.parametrize("name", FORMATS)
def test_lora(tmp_path: Path, name: str, size: float) -> None:
    bases, lattice = FORMATS[name]
    made = bases()
    base = base_of(tmp_path / "base", made, shards=2)
    factors = factors_of(made, size)
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    report = library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    judge(lattice, load(base), load(tmp_path / "out"), edited(made, delta(*factors.values())))
    assert report.kept is not None and report.kept[-1].elements == len(made.exact) * len(made.exact[0])


def edited(made: Quantised, change: Matrix) -> Matrix:
    return [[w + d for w, d in zip(*rows, strict=True)] for rows in zip(made.exact, change, strict=True)]


@pytest.mark.parametrize("weight", ["1", "-0.75"])
@pytest.mark.parametrize("name", ["FP8, blocks", "FP8, tensor", "INT4", "NVFP4"])
def test_dora(tmp_path: Path, name: str, weight: str) -> None:
    bases, lattice = FORMATS[name]
    made = bases()
    factors = factors_of(made, 0.1)
    norms = [float(sum(value * value for value in row)) ** 0.5 * 1.03 for row in made.exact]
    magnitude = torch.tensor(norms).bfloat16()
    adapter = write_adapter(
        tmp_path / "adapter", factors | {f"{X}.lora_magnitude_vector": magnitude}, r=2, lora_alpha=2, use_dora=True
    )
    base = base_of(tmp_path / "base", made)
    library.merge(base, [adapter], tmp_path / "out", weights=[weight], quantise="keep")
    exact = dora_exactly(made.exact, delta(*factors.values()), [*map(Fraction, magnitude.tolist())], Fraction(weight))
    judge(lattice, load(base), load(tmp_path / "out"), exact)


@pytest.mark.parametrize("name", ["FP8, blocks", "FP8, tensor", "NVFP4 of ModelOpt", "INT8, groups"])
def test_parts_threads_and_alphas_are_the_same_bytes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales in files of their own, made by themselves; blocks that are larger than what is computed at once."""
    bases, lattice = FORMATS[name]
    made = bases()
    factors = factors_of(made, 0.2)
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    change = delta(*factors.values())
    together = base_of(tmp_path / "together", made)
    apart = base_of(tmp_path / "apart", made, shards=2 + len(made.tensors))
    library.wise(together, adapter, tmp_path / "one", [0, 0.3, 1], quantise="keep", threads=1)
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 300)
    monkeypatch.setattr(tiling, "_LARGEST_BLOCK", 600)
    library.wise(together, adapter, tmp_path / "two", [0, 0.3, 1], quantise="keep", threads=3)
    library.wise(apart, adapter, tmp_path / "three", [0, 0.3, 1], quantise="keep", threads=2)
    before = load(together)
    for alpha in ("0.000", "0.300", "1.000"):
        found = [load(tmp_path / out / f"alpha-{alpha}") for out in ("one", "two", "three")]
        for tensor in before:
            one, *others = (tensors[tensor].reshape(-1) for tensors in found)
            assert all(same_bits(one, other) for other in others), tensor
            assert alpha != "0.000" or same_bits(one, before[tensor].reshape(-1))
        times = Fraction(float(alpha))
        judge(lattice, before, found[0], edited(made, [[times * d for d in row] for row in change]))


def test_an_adapter_that_changes_some_rows(tmp_path: Path) -> None:
    """Blocks of rows of zeros in B keep all of their bits, −0 too; and so does what no adapter changes."""
    for name, rows in (("FP8, blocks", 16), ("INT4", 1), ("NVFP4", 1)):
        made = FORMATS[name][0]()
        base = base_of(tmp_path / name / "base", made)
        factors = factors_of(made, 5.0)
        factors[f"{X}.lora_B.weight"][:rows] = 0
        adapter = write_adapter(tmp_path / name / "adapter", factors, r=2, lora_alpha=2)
        report = library.merge(base, [adapter], tmp_path / name / "out", quantise="keep")
        before, after = load(base), load(tmp_path / name / "out")
        for tensor in before:
            head = 1 if "scale" in tensor else rows
            if before[tensor].ndim == 2 and X in tensor:
                assert same_bits(after[tensor][:head], before[tensor][:head])
                assert not same_bits(after[tensor], before[tensor])
            else:
                assert same_bits(after[tensor], before[tensor])
        assert snapshot(base).keys() - snapshot(tmp_path / name / "out").keys() == set()
        assert (tmp_path / name / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
        assert report.kept is not None and 0 < report.kept[-1].rescaled < report.kept[-1].blocks


def test_middles_go_to_the_even_code(tmp_path: Path) -> None:
    """W + Δ is just between two codes, in a sum that float64 does not hold; or beside it by less."""
    codes = torch.arange(1, 127, dtype=torch.uint8).repeat(3, 1)
    values = codes.view(torch.float8_e4m3fn).double()
    scale = torch.tensor([[3.0]])
    steps = torch.cat([values[0, 1:] - values[0, :-1], torch.zeros(1)]) / 2 * 3
    a = torch.stack([steps, torch.full((126,), 2.0**-60)])
    a[:, -1] = 0
    b = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    made = Quantised(
        {f"{X}.weight": codes.view(torch.float8_e4m3fn), f"{X}.weight_scale_inv": scale},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        [[3 * Fraction(value) for value in row] for row in values.tolist()],
    )
    factors = {f"{X}.lora_A.weight": a.float(), f"{X}.lora_B.weight": b}
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    base = base_of(tmp_path / "base", made)
    library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    found = load(tmp_path / "out")[f"{X}.weight"].view(torch.uint8)
    assert found[0, :-1].tolist() == [code + code % 2 for code in range(1, 126)]
    assert found[1, :-1].tolist() == list(range(2, 127)) and found[2, :-1].tolist() == list(range(1, 126))
    judge(FORMATS["FP8, blocks"][1]._replace(block=(128, 128)), load(base), load(tmp_path / "out"),
          edited(made, delta(*factors.values())))  # fmt: skip


def test_middles_of_dora(tmp_path: Path) -> None:
    """Norms that are whole numbers, and one that is beside such."""
    rows, name = 40, f"{X}.weight"
    codes = torch.zeros(rows, 72)
    codes[:, :2] = torch.tensor([48.0, 64.0])
    made = Quantised(
        {name: codes.to(torch.float8_e4m3fn), f"{X}.weight_scale_inv": torch.ones(1, 1)},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        [[Fraction(value) for value in row] for row in codes.tolist()],
    )
    a, b = torch.zeros(1, 72), torch.ones(rows, 1)
    a[0, :2] = torch.tensor([3.0, 4.0])  # (51, 68), of norm 85; 68 is a middle
    magnitude = torch.full((rows,), 85.0)
    magnitude[1], magnitude[2] = 85 + 2.0**-16, 85 - 2.0**-16
    factors = {f"{X}.lora_A.weight": a, f"{X}.lora_B.weight": b, f"{X}.lora_magnitude_vector": magnitude}
    adapter = write_adapter(tmp_path / "adapter", factors, r=1, lora_alpha=1, use_dora=True)
    library.merge(base_of(tmp_path / "base", made), [adapter], tmp_path / "out", quantise="keep")
    found = load(tmp_path / "out")[name].float()
    assert found[:4, 1].tolist() == [64, 72, 64, 64] and found[:, 0].eq(52).all() and found[3:, 1].eq(64).all()


def test_scales_that_are_powers_of_two(tmp_path: Path) -> None:
    """In float32, where the config says so (DeepSeek-V3.1)."""
    made = FORMATS["FP8, exponents"][0]()
    powers = (made.tensors[f"{X}.weight_scale_inv"].float() - 127).exp2()
    made = made._replace(
        tensors=made.tensors | {f"{X}.weight_scale_inv": powers}, config=made.config | {"scale_fmt": "ue8m0"}
    )
    factors = factors_of(made, 2.0)
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    base = base_of(tmp_path / "base", made)
    report = library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    found = load(tmp_path / "out")[f"{X}.weight_scale_inv"]
    assert found.log2().equal(found.log2().round()) and report.kept is not None and report.kept[-1].rescaled
    least = made.exact
    for i in range(2):
        for j in range(3):
            block = [row[32 * j : 32 * j + 32] for row in edited(made, delta(*factors.values()))[16 * i : 16 * i + 16]]
            largest = max(abs(value) for row in block for value in row)
            was = max(abs(value) for row in least[16 * i : 16 * i + 16] for value in row[32 * j : 32 * j + 32])
            scale = Fraction(found[i, j].item())
            assert largest <= 448 * scale and (scale == Fraction(powers[i, j].item()) or largest > 224 * scale), was


def test_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made, lattice = FORMATS["FP8, tensor"][0](), FORMATS["FP8, tensor"][1]
    base = base_of(tmp_path / "base", made)
    factors = factors_of(made, 0.002)
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    arguments = ["merge", str(base), str(adapter), "-o", str(tmp_path / "out"), "--quantise", "keep"]
    assert main_here(arguments, monkeypatch) == 0
    out, err = capsys.readouterr()
    before, after = load(base), load(tmp_path / "out")
    table = [value or Fraction(0) for value in lattice.table]
    numbers = [
        [table[code] * lattice.scale(tensors)[0][0] for row in lattice.codes(tensors) for code in row]
        for tensors in (before, after)
    ]
    change = [value for row in delta(*factors.values()) for value in row]
    moved = [new - old for old, new in zip(*numbers, strict=True)]
    square = sum(d * d for d in change)
    survival = float(sum(d * m for d, m in zip(change, moved, strict=True)) / square)
    noise = float(sum((m - d) ** 2 for d, m in zip(change, moved, strict=True)) / square) ** 0.5
    manifest = json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())
    assert manifest["recipe"]["quantise"] == "keep"
    of_family, of_all = manifest["kept"]
    assert of_family == of_all | {"family": "up"} or of_family["family"]
    assert of_all["survival"] == pytest.approx(survival, abs=2e-4) and of_all["noise"] == pytest.approx(noise, rel=1e-3)
    assert of_all["elements"] == 20 * 72 and of_all["blocks"] == 1
    codes = zip(lattice.codes(before), lattice.codes(after), strict=True)
    assert of_all["changed"] == sum(a != b for rows in codes for a, b in zip(*rows, strict=True))
    assert "scales of activations stay as they were measured on the base: 1" in err
    assert "survives, noise" in out and (survival >= 0.5 or ("WARNING" in err and "--dtype bf16" in err))


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    made = FORMATS["FP8, blocks"][0]()
    base = base_of(tmp_path / "base", made, shards=4)
    adapter = write_adapter(tmp_path / "adapter", factors_of(made, 0.1), r=2, lora_alpha=2)
    once = library.merge(base, [adapter], tmp_path / "once", quantise="keep", threads=2)
    for least in (1, 700, 1500, 2500):
        written = 0

        def stop(size: int, least: int = least) -> None:
            nonlocal written
            written += size
            if written > least:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            library.merge(base, [adapter], tmp_path / "out", quantise="keep", threads=1, progress=stop)
        assert not (tmp_path / "out").exists()
    again = library.merge(base, [adapter], tmp_path / "out", quantise="keep", threads=1)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "once") and again.kept == once.kept


REFUSED = ["NF4", "INT8 of bitsandbytes", "GPTQ", "AWQ", "INT4, ordered", "INT4, zeros", "INT8, zeros", "INT3"]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(tmp_path: Path, name: str) -> None:
    made = BASES[name]()
    base = base_of(tmp_path / "base", made)
    adapter = write_adapter(tmp_path / "adapter", factors_of(made, 0.1), r=2, lora_alpha=2)
    with pytest.raises(UnsupportedError, match=f"{name[:3]}.*--quantise keep.*--dtype bf16"):
        library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    assert not (tmp_path / "out").exists()


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter, tuned = (str(FIXTURES / name) for name in ("base", "lora", "tuned"))
    out = ["-o", str(tmp_path / "out")]
    for arguments, code, told in (
        (["merge", base, adapter, "--quantise", "keep"], 3, "--quantise of a dense base is not offered"),
        (["merge", base, adapter, "--quantise", "keep", "--dtype", "bf16"], 2, "give one of both"),
        (["merge", base, adapter, "--quantise", "nf4"], 2, "nf4"),
        (["merge", base, adapter, "--quantise", "keep", "--method", "linear"], 2, "methods"),
        (["wise", base, tuned, "--alpha", "0.5", "--quantise", "keep"], 2, "two checkpoints"),
        (["wise", base, adapter, "--alpha", "0.5", "--quantise", "keep", "--as-adapter"], 2, "for an adapter"),
    ):
        assert main_here([*arguments, *out], monkeypatch) == code, arguments
        assert told in capsys.readouterr().err


def test_numbers_that_no_scale_holds(tmp_path: Path) -> None:
    made = FORMATS["NVFP4"][0]()
    base = base_of(tmp_path / "base", made)
    adapter = write_adapter(tmp_path / "adapter", factors_of(made, 1e6), r=2, lora_alpha=2)
    with pytest.raises(UnsupportedError, match=r"no scale of F8_E4M3 .* holds it.*--dtype bf16"):
        library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    codes = made.tensors[f"{X}.weight_packed"]
    nan = made.tensors | {f"{X}.weight_scale": torch.full((20, 4), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)}
    base = base_of(tmp_path / "nan", made._replace(tensors=nan))
    adapter = write_adapter(tmp_path / "small", factors_of(made, 0.1), r=2, lora_alpha=2)
    with pytest.raises(NonFiniteError, match="row 0, column 0: what it holds is no finite number"):
        library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    assert len(codes) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("powers", [False, True])
def test_blocks_that_are_larger_than_what_is_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, powers: bool
) -> None:
    """And whose rows are no multiple of these."""
    made, lattice = FORMATS["FP8, blocks"]
    base = made()
    scale = base.tensors[f"{X}.weight_scale_inv"]
    if powers:
        two = scale.log2().round().exp2()
        old, new = ([[Fraction(value) for value in row] for row in one.tolist()] for one in (scale, two))
        exact = [[value / old[i // 16][j // 32] * new[i // 16][j // 32] for j, value in enumerate(row)]
                 for i, row in enumerate(base.exact)]  # fmt: skip
        base = base._replace(tensors=base.tensors | {f"{X}.weight_scale_inv": two}, exact=exact,
                             config=base.config | {"scale_fmt": "ue8m0"})  # fmt: skip
    factors = factors_of(base, 3.0)
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    checkpoint = base_of(tmp_path / "base", base)
    library.merge(checkpoint, [adapter], tmp_path / "whole", quantise="keep")
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 72 * 5)
    monkeypatch.setattr(tiling, "_LARGEST_BLOCK", 72 * 5)
    library.merge(checkpoint, [adapter], tmp_path / "parts", quantise="keep", threads=2)
    whole, parts = (load(tmp_path / name) for name in ("whole", "parts"))
    assert all(same_bits(whole[name], parts[name]) for name in whole)
    if not powers:
        judge(lattice, load(checkpoint), parts, edited(base, delta(*factors.values())))


def test_a_block_whose_scale_is_0_keeps_its_codes(tmp_path: Path) -> None:
    made = FORMATS["FP8, rows"][0]()
    scale = made.tensors[f"{X}.weight_scale"].clone()
    scale[:3] = 0
    base = base_of(tmp_path / "base", made._replace(tensors=made.tensors | {f"{X}.weight_scale": scale}))
    factors = factors_of(made, 0.1)
    factors[f"{X}.lora_B.weight"][:3] = 0
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    before, after = (load(one)[f"{X}.weight"] for one in (base, tmp_path / "out"))
    assert same_bits(before[:3], after[:3]) and not same_bits(before, after)


def test_a_power_of_two_is_never_0(tmp_path: Path) -> None:
    """Numbers that are smaller than those of the dtype of the scales."""
    scale = f"{X}.weight_scale_inv"
    made = Quantised({f"{X}.weight": torch.zeros(4, 16).to(torch.float8_e4m3fn), scale: torch.zeros(1, 1)},
                     {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}, [])  # fmt: skip
    a, b = torch.full((1, 16), 1e-25), torch.full((4, 1), 1e-25)
    factors = {f"{X}.lora_A.weight": a, f"{X}.lora_B.weight": b}
    adapter = write_adapter(tmp_path / "adapter", factors, r=1, lora_alpha=1)
    library.merge(base_of(tmp_path / "base", made), [adapter], tmp_path / "out", quantise="keep")
    assert load(tmp_path / "out")[scale].double().item() == 2.0**-149


def test_blocks_of_zeros(tmp_path: Path) -> None:
    """A scale of 0, as of a block of zeros: it gets one where the adapter brings numbers."""
    made, lattice = FORMATS["FP8, rows"][0](), FORMATS["FP8, rows"][1]
    scale = made.tensors[f"{X}.weight_scale"].clone()
    scale[:3] = 0
    exact = [[Fraction(0)] * 72 if row < 3 else own for row, own in enumerate(made.exact)]
    made = made._replace(tensors=made.tensors | {f"{X}.weight_scale": scale}, exact=exact)
    factors = factors_of(made, 0.1)
    factors[f"{X}.lora_B.weight"][1] = 0
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    base = base_of(tmp_path / "base", made)
    library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    found = load(tmp_path / "out")
    assert (found[f"{X}.weight_scale"][:3, 0] > 0).tolist() == [True, False, True]
    judge(lattice, load(base), found, edited(made, delta(*factors.values())))


def test_a_part_of_the_page(tmp_path: Path) -> None:
    """The table of docs/quantised.md, of which this makes some numbers again."""
    text = survival.PAGE.read_text()
    for number, name in enumerate(survival.FORMATS):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        if name in ("FP8, blocks of 128×128", "MXFP4 (scales rounded down)"):
            (report,) = survival.survivals(tmp_path / str(number), name, survival.SIZES[2:3])
            assert report.kept is not None
            told = f"{report.kept[-1].survival:.2f} ({report.kept[-1].noise:.2f})"
            assert line.split(" | ")[3] == told, "make survival"


def test_files_of_another_size(tmp_path: Path) -> None:
    """Codes and scales in other files than the base's."""
    bases, lattice = FORMATS["NVFP4"]
    made = bases()
    factors = factors_of(made, 0.2)
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    base = base_of(tmp_path / "base", made, shards=2)
    library.merge(base, [adapter], tmp_path / "out", quantise="keep", max_shard_size=500)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    judge(lattice, load(base), load(tmp_path / "out"), edited(made, delta(*factors.values())))
    plan = library.prepare_merge(base, [adapter], quantise="keep")
    assert not any("quantization_config" in note for note in plan.notes)
    told = {one.name: one.action for one in preview(plan, tmp_path / "plan").tensors}
    assert told.pop(f"{X}.weight_packed") == told.pop(f"{X}.weight_scale") == "edit" and {*told.values()} == {"copy"}
