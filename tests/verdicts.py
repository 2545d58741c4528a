"""docs/verdicts.md: faults that `verify` finds and names, honest merges that it calls right.

    python tests/verdicts.py    writes the page anew (make verdicts)

Random weights of a standard deviation of 0.02 and adapters whose change is 1e-3, 1e-2, 1e-1 and 1 times as large, in
three dtypes of storage. Candidates are made by torch, as scripts do it, and never by our own code.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from conftest import ROOT, write_adapter, write_checkpoint

from adaptertool.reports.verify import VerifyReport
from adaptertool.tasks.verify import verify

PAGE = ROOT / "docs" / "verdicts.md"
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = {"bf16": BF16, "fp16": F16, "fp32": F32}
SIZES = (1e-3, 1e-2, 1e-1, 1.0)
Tensors = dict[str, torch.Tensor]
SHAPES = {
    "model.layers.{}.self_attn.q_proj": (256, 256),
    "model.layers.{}.self_attn.k_proj": (128, 256),
    "model.layers.{}.self_attn.v_proj": (128, 256),
    "model.layers.{}.mlp.up_proj": (512, 256),
}
LAYERS = {name.format(layer): shape for layer in range(2) for name, shape in SHAPES.items()}
Q0, K0, V0, UP0 = (name.format(0) for name in SHAPES)
Q1 = next(iter(SHAPES)).format(1)
EMBED, NORM = "model.embed_tokens", "model.norm"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
NAMES = {BF16: "bfloat16", F16: "float16", F32: "float32"}


@dataclasses.dataclass
class Case:
    """A base with two LoRA adapters, one of them also as DoRA."""

    folder: Path
    dtype: torch.dtype
    size: float  # of Δ, beside W
    rank: int = 8
    scale: float = 2.0

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.base = {f"{name}.weight": (torch.randn(shape) * 0.02).to(self.dtype) for name, shape in LAYERS.items()}
        self.base[f"{EMBED}.weight"] = torch.randn(300, 256).to(self.dtype)
        self.base[f"{NORM}.weight"] = (1 + 0.1 * torch.randn(256)).to(self.dtype)
        self.factors = [self.lora(), self.lora()]
        self.magnitudes = {
            name: self.w(name).norm(dim=1) * (1 + self.size * torch.rand(shape[0]).double())
            for name, shape in LAYERS.items()
        }
        write_checkpoint(self.folder / "base", self.base, config=CONFIG | {"torch_dtype": NAMES[self.dtype]})
        fields = {"r": self.rank, "lora_alpha": int(self.scale * self.rank)}
        for number, factors in enumerate(self.factors):
            tensors = {
                f"{name}.lora_{letter}.weight": f for name, pair in factors.items() for letter, f in pair.items()
            }
            write_adapter(self.folder / f"adapter-{number}", tensors, **fields)
            if number == 0:
                write_adapter(self.folder / "rslora", tensors, **fields | {"use_rslora": True})
                tensors |= {f"{name}.lora_magnitude_vector": m.float() for name, m in self.magnitudes.items()}
                write_adapter(self.folder / "dora", tensors, **fields | {"use_dora": True})

    def lora(self) -> dict[str, dict[str, torch.Tensor]]:
        wanted = 0.02 * self.size / self.scale
        return {
            name: {
                "A": torch.randn(self.rank, inner) / self.rank**0.5,
                "B": torch.randn(out, self.rank) * wanted,
            }
            for name, (out, inner) in LAYERS.items()
        }

    def w(self, name: str) -> torch.Tensor:
        return self.base[f"{name}.weight"].double()

    def delta(self, name: str, number: int = 0) -> torch.Tensor:
        pair = self.factors[number][name]
        return self.scale * pair["B"].double() @ pair["A"].double()

    def dora(self, name: str) -> torch.Tensor:
        whole = self.w(name) + self.delta(name)
        return self.magnitudes[name].float().double()[:, None] / whole.norm(dim=1, keepdim=True) * whole

    def with_all(self, make: Callable[[str], torch.Tensor]) -> Tensors:
        """The base, with what is made of each layer, cast to its dtype if it is not."""
        return self.base | {f"{name}.weight": make(name).to(self.dtype).contiguous() for name in LAYERS}

    def right(self, scale: float = 1.0) -> Tensors:
        return self.with_all(lambda name: (self.w(name) + scale * self.delta(name)).float())

    def judge(self, tensors: Tensors, sources: list[str], dtype: torch.dtype | None, **options: object) -> VerifyReport:
        merged = self.folder / "merged"
        shutil.rmtree(merged, ignore_errors=True)
        write_checkpoint(merged, tensors, config=CONFIG | {"torch_dtype": NAMES[dtype or self.dtype]})
        adapters = [self.folder / source for source in sources]
        return verify(merged, self.folder / "base", adapters, threads=1, **options)  # type: ignore[arg-type]


# --- candidates ---

ONE, TWO, DORA = ["adapter-0"], ["adapter-0", "adapter-1"], ["dora"]
Make = Callable[[Case], Tensors]


def truncated(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    near = numbers.to(dtype)
    inner = torch.nextafter(near, torch.zeros_like(near))
    return torch.where(near.double().abs() > numbers.abs(), inner, near)


def stochastic(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    low = truncated(numbers, dtype)
    high = torch.nextafter(low, torch.full_like(low, torch.inf).copysign(numbers.to(dtype)))
    place = (numbers - low.double()) / (high.double() - low.double())
    return torch.where(torch.rand(place.shape, dtype=F64) < place, high, low)


def tf32(numbers: torch.Tensor, *, cut: bool) -> torch.Tensor:
    bits = numbers.float().view(torch.int32)
    return ((bits + (0 if cut else 0x1000)) & ~0x1FFF).view(F32)


def product(case: Case, name: str, dtype: torch.dtype, number: int = 0) -> torch.Tensor:
    pair = case.factors[number][name]
    return pair["B"].to(dtype) @ pair["A"].to(dtype)


def scaled_first(case: Case, name: str) -> torch.Tensor:
    pair = case.factors[0][name]
    return case.base[f"{name}.weight"] + (case.scale * pair["B"].to(case.dtype)) @ pair["A"].to(case.dtype)


def by_tf32(case: Case, name: str, *, cut: bool) -> torch.Tensor:
    pair = case.factors[0][name]
    return case.w(name).float() + case.scale * (tf32(pair["B"], cut=cut) @ tf32(pair["A"], cut=cut))


def one_term_after_another(case: Case, name: str) -> torch.Tensor:
    pair, total = case.factors[0][name], case.w(name).float()
    for k in reversed(range(case.rank)):
        total = total + case.scale * pair["B"][:, k : k + 1] * pair["A"][k : k + 1]
    return total


def in_blocks(case: Case, name: str) -> torch.Tensor:
    pair = case.factors[0][name]
    halves = [pair["B"][:, k::2] @ pair["A"][k::2] for k in range(2)]
    return case.w(name).float() + case.scale * (halves[0] + halves[1])


def stepwise(case: Case, name: str, dtype: torch.dtype) -> torch.Tensor:
    total = case.base[f"{name}.weight"]
    for number in range(2):
        change = case.scale * product(case, name, dtype, number)
        total = (total.to(dtype) + change).to(case.dtype)
    return total


def dora_in(case: Case, name: str, norm: torch.dtype, ratio: torch.dtype, whole: torch.dtype) -> torch.Tensor:
    combined = (case.w(name) + case.delta(name)).float()
    norms = combined.norm(dim=1, keepdim=True).to(norm)
    return (case.magnitudes[name].float()[:, None] / norms).to(ratio) * combined.to(whole)


HONEST: dict[str, tuple[list[str], Make, dict[str, object]]] = {
    "float32": (ONE, lambda c: c.right(), {}),
    "float64, rounded twice": (ONE, lambda c: c.with_all(lambda n: c.w(n) + c.delta(n)), {}),
    "change rounded to the storage dtype (safe_merge)": (
        ONE, lambda c: c.with_all(lambda n: c.base[f"{n}.weight"] + c.delta(n).to(c.dtype)), {}),
    "product, scale and sum in the storage dtype": (
        ONE, lambda c: c.with_all(lambda n: c.base[f"{n}.weight"] + c.scale * product(c, n, c.dtype)), {}),
    "scale times B in the storage dtype": (ONE, lambda c: c.with_all(lambda n: scaled_first(c, n)), {}),
    "factors in bf16, sum in float32": (
        ONE, lambda c: c.with_all(lambda n: c.w(n).float() + c.scale * product(c, n, BF16).float()), {}),
    "TF32, to nearest": (ONE, lambda c: c.with_all(lambda n: by_tf32(c, n, cut=False)), {}),
    "TF32, cut off": (ONE, lambda c: c.with_all(lambda n: by_tf32(c, n, cut=True)), {}),
    "term after term": (ONE, lambda c: c.with_all(lambda n: one_term_after_another(c, n)), {}),
    "in blocks": (ONE, lambda c: c.with_all(lambda n: in_blocks(c, n)), {}),
    "two adapters at once": (
        TWO, lambda c: c.with_all(lambda n: (c.w(n) + c.delta(n) + c.delta(n, 1)).float()), {}),
    "two adapters, a rounding each": (TWO, lambda c: c.with_all(lambda n: stepwise(c, n, F32)), {}),
    "two adapters in the storage dtype": (TWO, lambda c: c.with_all(lambda n: stepwise(c, n, c.dtype)), {}),
    "DoRA in float32": (DORA, lambda c: c.with_all(lambda n: dora_in(c, n, F32, F32, F32)), {}),
    "DoRA, norms in the storage dtype": (DORA, lambda c: c.with_all(lambda n: dora_in(c, n, c.dtype, F32, F32)), {}),
    "DoRA, all in the storage dtype": (DORA, lambda c: c.with_all(lambda n: dora_in(c, n, *[c.dtype] * 3)), {}),
    "a third of the way, two products": (
        ONE, lambda c: c.with_all(lambda n: 0.7 * c.base[f"{n}.weight"] + 0.3 * c.right()[f"{n}.weight"]),
        {"alpha": "0.3"}),
    "a third of the way, torch.lerp": (
        ONE, lambda c: c.with_all(lambda n: torch.lerp(c.base[f"{n}.weight"], c.right()[f"{n}.weight"], 0.3)),
        {"alpha": "0.3"}),
    "stored as float32": (ONE, lambda c: {n: t.float() for n, t in c.right().items()}, {"dtype": F32}),
    "float32, cast to fp16": (
        ONE, lambda c: {n: t.to(F16) for n, t in (c.base | {
            f"{n}.weight": (c.w(n) + c.delta(n)).float() for n in LAYERS}).items()}, {"dtype": F16}),
    "merged, then .half()": (ONE, lambda c: {n: t.to(F16) for n, t in c.right().items()}, {"dtype": F16}),
}  # fmt: skip


def exchanged(tensors: Tensors, one: str, other: str) -> Tensors:
    one, other = f"{one}.weight", f"{other}.weight"
    return tensors | {one: tensors[other], other: tensors[one]}


def rolled(tensors: Tensors) -> Tensors:
    return tensors | {f"{UP0}.weight": tensors[f"{UP0}.weight"].roll(1, 0)}


def halves_exchanged(tensors: Tensors) -> Tensors:
    """As where gate and up of a fused tensor are taken for each other."""
    return tensors | {f"{UP0}.weight": tensors[f"{UP0}.weight"].roll(256, 0)}


def by_fp8(case: Case, name: str) -> torch.Tensor:
    pair = case.factors[0][name]
    scales = {letter: factor.abs().max().double() / 448 for letter, factor in pair.items()}
    narrow = {
        letter: (f / scales[letter]).to(torch.float8_e4m3fn).double() * scales[letter] for letter, f in pair.items()
    }
    return case.w(name) + case.scale * narrow["B"] @ narrow["A"]


def another_base(case: Case, name: str) -> torch.Tensor:
    return case.w(name) * (1 + 0.01 * torch.randn(case.w(name).shape).double()) + case.delta(name)


FAULTS: dict[str, tuple[list[str], Make, dict[str, object], set[str]]] = {
    "not applied": (ONE, lambda c: c.base, {}, {"not-applied"}),
    "one layer not applied": (
        ONE, lambda c: c.right() | {f"{Q0}.weight": c.base[f"{Q0}.weight"]}, {}, {"not-applied"}),
    "the second of two adapters not applied": (TWO, lambda c: c.right(), {}, {"not-applied"}),
    "applied twice": (ONE, lambda c: c.right(2), {}, {"applied-twice"}),
    "negated": (ONE, lambda c: c.right(-1), {}, {"negated"}),
    "rsLoRA ignored": (["rslora"], lambda c: c.right(), {}, {"rslora-ignored"}),
    "magnitudes ignored": (DORA, lambda c: c.right(), {}, {"magnitude-ignored"}),
    "scale × 1.5": (ONE, lambda c: c.right(1.5), {}, {"wrong-scale"}),
    "scale × 0.9": (ONE, lambda c: c.right(0.9), {}, {"wrong-scale"}),
    "scale × 1.01": (ONE, lambda c: c.right(1.01), {}, {"wrong-scale"}),
    "scale × 0.993": (ONE, lambda c: c.right(0.993), {}, {"wrong-scale"}),
    "two adapters × 1.01 and 0.99": (
        TWO, lambda c: c.with_all(lambda n: (c.w(n) + 1.01 * c.delta(n) + 0.99 * c.delta(n, 1)).float()), {},
        {"wrong-scale"}),
    "alpha 0.302 in the place of 0.3": (ONE, lambda c: c.right(0.302), {"alpha": "0.3"}, {"wrong-scale"}),
    "DoRA × 1.005": (DORA, lambda c: c.with_all(lambda n: (1.005 * c.dora(n)).float()), {}, {"wrong-scale"}),
    "change transposed": (
        ONE, lambda c: c.right() | {f"{Q0}.weight": (c.w(Q0) + c.delta(Q0).T).to(c.dtype).contiguous()}, {},
        {"transposed"}),
    "weight transposed": (
        ONE, lambda c: c.right() | {f"{Q0}.weight": c.right()[f"{Q0}.weight"].T.contiguous()}, {}, {"transposed"}),
    "rows rolled by one": (ONE, lambda c: rolled(c.right()), {}, {"row-shifted"}),
    "halves exchanged": (ONE, lambda c: halves_exchanged(c.right()), {}, {"row-shifted"}),
    "k_proj and v_proj exchanged": (ONE, lambda c: exchanged(c.right(), K0, V0), {}, {"row-shifted"}),
    "q_proj of two layers exchanged": (ONE, lambda c: exchanged(c.right(), Q0, Q1), {}, {"row-shifted"}),
    "changes of two layers exchanged": (
        ONE, lambda c: c.right() | {
            f"{a}.weight": (c.w(a) + c.delta(b)).to(c.dtype) for a, b in ((Q0, Q1), (Q1, Q0))}, {}, {"row-shifted"}),
    "cut off towards 0": (
        ONE, lambda c: c.with_all(lambda n: truncated(c.w(n) + c.delta(n), c.dtype)), {}, {"truncated"}),
    "stochastic rounding": (
        ONE, lambda c: c.with_all(lambda n: stochastic(c.w(n) + c.delta(n), c.dtype)), {}, {"stochastic"}),
    "factors in FP8": (ONE, lambda c: c.with_all(lambda n: by_fp8(c, n).float()), {}, {"lower-precision"}),
    "merged in FP8": (
        ONE, lambda c: c.with_all(lambda n: (c.w(n) + c.delta(n)).to(torch.float8_e4m3fn).float()), {},
        {"lower-precision"}),
    "another base": (
        ONE, lambda c: c.with_all(lambda n: another_base(c, n)) | {
            f"{EMBED}.weight": (c.base[f"{EMBED}.weight"] * 1.01)}, {}, {"wrong-base"}),
    "an infinity": (ONE, lambda c: with_element(c, torch.inf), {}, {"nan", "overflow"}),
    "one element × 1.5": (ONE, lambda c: with_element(c, None), {}, {"unknown"}),
}  # fmt: skip


def with_element(case: Case, value: float | None) -> Tensors:
    tensors = case.right()
    changed = tensors[f"{UP0}.weight"].clone()
    changed[7, 9] = 1.5 * changed[7, 9] if value is None else value
    return tensors | {f"{UP0}.weight": changed}


def judged(case: Case, name: str) -> tuple[bool, set[str]]:
    """(right, what was found)"""
    sources, make, options, *_ = HONEST.get(name) or FAULTS[name]
    torch.manual_seed(1)
    options = dict(options)
    dtype = options.pop("dtype", None)
    report = case.judge(make(case), sources, dtype, **options)  # type: ignore[arg-type]
    return report.ok, set(report.summary.diagnosis)


def is_honest(name: str, dtype: torch.dtype) -> bool:
    if name.startswith("TF32") or "fp16" in name or "half()" in name:
        return dtype != F32
    return "bf16" not in name or dtype == BF16


def verdicts(folder: Path, dtype: str, size: float, names: Collection[str] = ()) -> Mapping[str, str]:
    """name -> what came of it: "right" or "WRONG" of an honest merge; "named", "found" or "missed" of a fault.

    names: of those that are to be tried; all where there are none.
    """
    case, results = Case(folder, DTYPES[dtype], size), {}
    for name in HONEST:
        if is_honest(name, case.dtype) and (not names or name in names):
            results[name] = "right" if judged(case, name)[0] else "WRONG"
    for name, (*_, codes) in FAULTS.items():
        if names and name not in names:
            continue
        right, found = judged(case, name)
        results[name] = "missed" if right else "named" if found & codes else "found"
    return results


def page() -> str:
    columns = [(dtype, size) for dtype in DTYPES for size in SIZES]
    results = {}
    for dtype, size in columns:
        with tempfile.TemporaryDirectory() as folder:
            results[dtype, size] = verdicts(Path(folder), dtype, size)
            print(
                dtype,
                size,
                {n: r for n, r in results[dtype, size].items() if r not in ("right", "named")},
                file=sys.stderr,
            )
    faults = [result for column in results.values() for name, result in column.items() if name in FAULTS]
    honest = [result for column in results.values() for name, result in column.items() if name in HONEST]
    lines = [
        "# What `verify` finds",
        "",
        "Made by `make verdicts`; a test runs a part of it. Random weights and adapters whose change Δ is 1e-3, 1e-2,",
        "1e-1 and 1 times as large as the weights, 8 layers, 524,288 elements in all. Candidates are made by torch.",
        "",
        f"- Of {len(faults)} planted faults {sum(r != 'missed' for r in faults)} are found, "
        f"{sum(r == 'named' for r in faults)} of them named as they are.",
        f"- Of {len(honest)} honest merges {honest.count('right')} are called right.",
        "",
        "*found*: wrong, under another name. *missed*: called right; of a change so small that next to nothing of it",
        "is stored, nothing is left to tell by; and float32 weights rounded by chance are not told from float32 sums",
        "in another order.",
        "",
    ]
    for title, names in (("Faults", FAULTS), ("Honest merges", HONEST)):
        lines += ["", f"## {title}", "", "| |" + "".join(f" {dtype}, {size:g} |" for dtype, size in columns)]
        lines += ["| --- |" + " --- |" * len(columns)]
        for name in names:
            cells = (results[column].get(name, "–") for column in columns)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page())
