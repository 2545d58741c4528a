"""What AutoAWQ 0.2.9 and GPTQModel 7.7 make of packed codes: tests/codecs/packings.json.

    python tools/record_packings.py AUTOAWQ GPTQMODEL

The arguments are their sources, unpacked (`pip download --no-deps --no-binary :all: autoawq==0.2.9 gptqmodel==7.7.0`).
Both packages want CUDA where they are imported, so the functions that unpack are taken out of their files and run by
themselves: awq/utils/packing_utils.py (dequantize_gemm) and gptqmodel (nn_modules/qlinear/__init__.py:
dequantize_weight; utils/model.py: convert_gptq_v1_to_v2_format_module). Codes are random, scales float16 powers of two,
so that what the libraries compute in float16 is exact.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

OUT = Path(__file__).parent.parent / "tests" / "codecs" / "packings.json"
INNER, OUTER, GROUP = 64, 16, 32


def functions(file: Path, *names: str) -> dict[str, Any]:
    """These functions of a file, or of its classes, with nothing else of it."""
    tree = ast.parse(file.read_text())
    found: dict[str, Any] = {
        "t": torch, "torch": torch, "_torch_right_shift": torch.bitwise_right_shift, "BaseQuantLinear": object,
        "nn": torch.nn, "log": SimpleNamespace(info=SimpleNamespace(once=lambda _: None)),
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            module = ast.Module([node], type_ignores=[])
            exec(compile(module, str(file), "exec"), found)
    return found


def awq(root: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("packing_utils", root / "awq/utils/packing_utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words, scales = drawn(INNER, OUTER // 8), powers(INNER // GROUP, OUTER)
    zeros = drawn(INNER // GROUP, OUTER // 8)
    made = module.dequantize_gemm(words, zeros, scales, 4, GROUP)
    return told({"qweight": words, "qzeros": zeros, "scales": scales}, made)


def gptq(root: Path, bits: int, version: str) -> dict[str, Any]:
    run = functions(root / "gptqmodel/nn_modules/qlinear/__init__.py", "dequantize_weight", "_dequantize_from_codes")
    turn = functions(root / "gptqmodel/utils/model.py", "convert_gptq_v1_to_v2_format_module")
    each = 32 // bits
    words, scales = drawn(INNER // each, OUTER), powers(INNER // GROUP, OUTER)
    zeros, index = drawn(INNER // GROUP, OUTER // each), torch.randint(0, INNER // GROUP, (INNER,)).int()
    wf = torch.arange(0, 32, bits, dtype=torch.int32).unsqueeze(0)
    layer = SimpleNamespace(
        planar=False, bits=bits, maxq=2**bits - 1, pack_factor=each, dequant_dtype=torch.int16, in_features=INNER,
        qweight=words, qzeros=zeros.clone(), scales=scales, g_idx=index, pack_dtype=torch.int32,
        wf_unsqueeze_zero=wf.unsqueeze(0), wf_unsqueeze_neg_one=wf.unsqueeze(-1),
        _init_wf_unsqueeze_buffers=lambda: None,
    )  # fmt: skip
    layer._dequantize_from_codes = lambda *given, **more: run["_dequantize_from_codes"](layer, *given, **more)
    layer.qzero_format = lambda *given, **_: 2 if given else 1
    if version == "gptq":
        turn["convert_gptq_v1_to_v2_format_module"](layer, bits, torch.int32)
    made = run["dequantize_weight"](layer)
    return told({"qweight": words, "qzeros": zeros, "scales": scales, "g_idx": index}, made)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape).int()


def powers(*shape: int) -> torch.Tensor:
    return (2.0 ** torch.randint(-6, 1, shape)).half()


def told(tensors: dict[str, torch.Tensor], made: torch.Tensor) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()} | {"weight": made.T.float().tolist()}


def main(autoawq: Path, gptqmodel: Path) -> None:
    torch.manual_seed(0)
    found = {"awq": awq(autoawq)}
    for bits in (2, 4, 8):
        if 32 // bits <= OUTER:
            found |= {f"{version}, {bits} bits": gptq(gptqmodel, bits, version) for version in ("gptq", "gptq_v2")}
    OUT.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
