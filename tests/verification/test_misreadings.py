"""Merges of each kind that were done wrongly in a way that tools have: numpy makes them, and `verify` names the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tensors, write_checkpoint
from one_kind import write
from safetensors.torch import save_file

import adaptertool

N, R = 12, 3
SPARSE = [[0, 3, 5], [2, 0, 7]]
Array = np.ndarray
Change = Callable[[Array, Mapping[str, Array]], Array]  # (W, factors) -> W'
DORA = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, "use_dora": True}
OFT = {
    "peft_type": "OFT", "peft_version": "0.21.2", "num_cayley_neumann_terms": 5, "eps": 6e-5, "block_share": False,
    "r": 0, "oft_block_size": 4,
}  # fmt: skip


def kohya(path: Path, factors: Tensors) -> Path:
    """A file with alpha/r = 3 where there is a rank."""
    tensors = {f"lora_unet_l.{key}": tensor for key, tensor in factors.items()}
    scaled = {} if "on_input" in factors else {"lora_unet_l.alpha": torch.tensor(3.0 * R)}
    save_file(tensors | scaled, path)
    return path


def rows(w: Array) -> Array:
    return np.linalg.norm(w, axis=1, keepdims=True)


def columns(w: Array) -> Array:
    return np.linalg.norm(w, axis=0, keepdims=True)


def blocks(numbers: Array) -> Array:
    """Blocks on a diagonal."""
    whole = np.zeros((N, N))
    for k, block in enumerate(numbers):
        at = slice(k * len(block), (k + 1) * len(block))
        whole[at, at] = block
    return whole


def packed(numbers: Array) -> Array:
    q = np.zeros((len(numbers), 4, 4))
    above = np.triu_indices(4, 1)
    q[:, above[0], above[1]] = numbers
    return blocks(q - q.transpose(0, 2, 1))


def cayley(q: Array) -> Array:
    return (np.eye(N) - q) @ np.linalg.inv(np.eye(N) + q)


def series(q: Array) -> Array:
    return np.eye(N) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q


def boft(f: Mapping[str, Array]) -> Array:
    """Rᵀ of W·Rᵀ"""
    return cayley(blocks((f["boft_R"][0] - f["boft_R"][0].transpose(0, 2, 1)) / 2)).T


def reflections(u: Array) -> Array:
    turn = np.eye(N)
    for column in u.T:
        turn = turn @ (np.eye(N) - 2 * np.outer(column, column) / (column @ column))
    return turn


def road(f: Mapping[str, Array], alpha: float | Array | None = None) -> Array:
    theta, scale = f["road_theta"], f["road_alpha"] if alpha is None else alpha
    cosine, sine = np.diag(scale * np.cos(theta)), np.diag(scale * np.sin(theta))
    return np.block([[cosine, -sine], [sine, cosine]])


def fourier(numbers: Array, seed: int) -> Array:
    places = torch.randperm(N * N, generator=torch.Generator().manual_seed(seed))[: len(numbers)].numpy()
    spectrum = np.zeros(N * N)
    spectrum[places] = numbers
    return np.fft.ifft2(spectrum.reshape(N, N)).real * 300


def osf(f: Mapping[str, Array]) -> Array:
    u, s, v = (f[f"osf_svd_params.{name}_low"] for name in "USV")
    return u * s @ v


def smallest(w: Array) -> Array:
    """The R smallest singular components of a weight of bf16, or float32."""
    narrow = np.array_equal(torch.from_numpy(w).bfloat16().double().numpy(), w)
    parts = [torch.from_numpy(part) for part in np.linalg.svd(w)]
    u, s, v = (part.bfloat16().double().numpy() if narrow else part.numpy() for part in parts)
    return u[:, -R:] * s[-R:] @ v[-R:]


def kasa(w: Array, f: Mapping[str, Array]) -> Array:
    narrow = np.array_equal(torch.from_numpy(w).bfloat16().double().numpy(), w)
    u, s, v = np.linalg.svd(w)
    stays = u[:, :-R] * s[:-R] @ v[:-R]
    stays = torch.from_numpy(stays).bfloat16().double().numpy() if narrow else stays
    return stays + f["lora_B.weight"] * f["lora_diag"] @ f["lora_A.weight"]


def frod(w: Array, f: Mapping[str, Array]) -> Array:
    found, sparse = np.linalg.solve(f["frod_V.l"], w.T).T, np.diag(f["frod_lambda_l"])
    sparse[tuple(np.array(SPARSE))] = f["frod_lambda_s_values"]
    u = (found / np.linalg.norm(found, axis=0)).astype(np.float32).astype(np.float64)
    return u @ sparse @ f["frod_V.l"].T


def dora(v: Array, m: Array, norm: Array) -> Array:
    return m.reshape(-1, 1) / norm * v


def full(f: Mapping[str, Array]) -> tuple[Array, Array]:
    return f["hada_w1_a"] @ f["hada_w1_b"], f["hada_w2_a"] @ f["hada_w2_b"]


def lokr(f: Mapping[str, Array]) -> tuple[Array, Array]:
    return f["lokr_w1"], f["lokr_w2_a"] @ f["lokr_w2_b"] if "lokr_w2_a" in f else f["lokr_w2"]


HADA = {f"hada_w{n}_{x}": (N, R) if x == "a" else (R, N) for n in "12" for x in "ab"}
LORA = {"lora_A.weight": (R, N), "lora_B.weight": (N, R)}
LOKR = {"lokr_w1": (3, 2), "lokr_w2_a": (4, R), "lokr_w2_b": (R, 6)}


def v(w: Array, f: Mapping[str, Array]) -> Array:
    return w + 2 * f["lora_B.weight"] @ f["lora_A.weight"]


def vera(f: Mapping[str, Array], b: bool = True, d: bool = True) -> Array:
    left, right = f["vera_B"] * (f["vera_lambda_b"][:, None] if b else 1), f["vera_A"]
    return left @ (right * (f["vera_lambda_d"][:, None] if d else 1))


# name: fields (None: a file of kohya's), shapes of the factors, the right W', and by code the wrong ones
CASES: Mapping[str, tuple[dict[str, Any] | None, Mapping[str, tuple[int, ...]], Change, Mapping[str, Change]]] = {
    "dora": (
        DORA,
        LORA | {"lora_magnitude_vector": (N,)},
        lambda w, f: dora(v(w, f), f["lora_magnitude_vector"], rows(v(w, f))),
        {
            "magnitude-ignored": v,
            "norm-of-base": lambda w, f: dora(v(w, f), f["lora_magnitude_vector"], rows(w)),
            "norm-axis": lambda w, f: f["lora_magnitude_vector"] / columns(v(w, f)) * v(w, f),
        },
    ),
    "dora of columns": (
        None,
        {"lora_down.weight": (R, N), "lora_up.weight": (N, R), "dora_scale": (1, N)},
        lambda w, f: f["dora_scale"] * (x := w + 3 * f["lora_up.weight"] @ f["lora_down.weight"]) / columns(x),
        {
            "magnitude-ignored": lambda w, f: w + 3 * f["lora_up.weight"] @ f["lora_down.weight"],
            "norm-of-base": lambda w, f: (
                f["dora_scale"] * (w + 3 * f["lora_up.weight"] @ f["lora_down.weight"]) / columns(w)
            ),
            "norm-axis": lambda w, f: dora(
                x := w + 3 * f["lora_up.weight"] @ f["lora_down.weight"], f["dora_scale"], rows(x)
            ),
        },
    ),
    "loha": (
        None,
        HADA,
        lambda w, f: w + 3 * full(f)[0] * full(f)[1],
        {
            "alpha-squared": lambda w, f: w + 9 * full(f)[0] * full(f)[1],
            "applied-twice": lambda w, f: w + 6 * full(f)[0] * full(f)[1],
            "factor-ignored": lambda w, f: w + 3 * full(f)[1],
            "transposed": lambda w, f: w + 3 * (full(f)[0] * full(f)[1]).T,
        },
    ),
    "lokr": (
        {"peft_type": "LOKR", "r": R, "alpha": 4 * R},
        LOKR,
        lambda w, f: w + 4 * np.kron(*lokr(f)),
        {
            "alpha-squared": lambda w, f: w + 16 * np.kron(*lokr(f)),
            "alpha-ignored": lambda w, f: w + np.kron(*lokr(f)),
            "factors-swapped": lambda w, f: w + 4 * np.kron(*lokr(f)[::-1]),
            "transposed": lambda w, f: w + 4 * np.kron(*lokr(f)).T,
        },
    ),
    "lokr, both stored": (
        {"peft_type": "LOKR", "r": R, "alpha": 4 * R},
        {"lokr_w1": (3, 2), "lokr_w2": (4, 6)},
        lambda w, f: w + 4 * np.kron(*lokr(f)),
        {
            "alpha-ignored": lambda w, f: w + np.kron(*lokr(f)),
            "factors-swapped": lambda w, f: w + 4 * np.kron(*lokr(f)[::-1]),
            "transposed": lambda w, f: w + 4 * np.kron(*lokr(f)).T,
        },
    ),
    "ia3": (
        {"peft_type": "IA3", "feedforward_modules": []},
        {"ia3_l": (N, 1)},
        lambda w, f: w * f["ia3_l"],
        {
            "one-added": lambda w, f: w * (1 + f["ia3_l"]),
            "other-side": lambda w, f: w * f["ia3_l"].T,
            "negated": lambda w, f: w - w * (f["ia3_l"] - 1),
        },
    ),
    "ia3 of inputs": (
        {"peft_type": "IA3", "feedforward_modules": ["l"]},
        {"ia3_l": (1, N)},
        lambda w, f: w * f["ia3_l"],
        {"one-added": lambda w, f: w * (1 + f["ia3_l"]), "other-side": lambda w, f: w * f["ia3_l"].T},
    ),
    "hira": (
        {"peft_type": "HIRA", "r": R},
        {"hira_A": (R, N), "hira_B": (N, R)},
        lambda w, f: w + w * (f["hira_B"] @ f["hira_A"]),
        {"taken-for-lora": lambda w, f: w + f["hira_B"] @ f["hira_A"]},
    ),
    "vera": (
        {"peft_type": "VERA", "r": R},
        {"vera_lambda_b": (N,), "vera_lambda_d": (R,), "vera_A": (R, N), "vera_B": (N, R)},
        lambda w, f: w + vera(f),
        {
            "factor-ignored": lambda w, f: w + vera(f, b=False),
            "not-applied": lambda w, _: w,
            "wrong-scale": lambda w, f: w + 3 * vera(f),
        },
    ),
    "adalora": (
        {"peft_type": "ADALORA", "init_r": R, "lora_alpha": 2 * R, "r": R},
        {"lora_A": (R, N), "lora_B": (N, R), "lora_E": (R, 1)},
        lambda w, f: w + 2 * R / (R + 1e-5) * f["lora_B"] @ (f["lora_E"] * f["lora_A"]),
        {"factor-ignored": lambda w, f: w + 2 * R / (R + 1e-5) * f["lora_B"] @ f["lora_A"]},
    ),
    "oft": (
        OFT | {"use_cayley_neumann": False, "coft": False},
        {"oft_R.weight": (N // 4, 6)},
        lambda w, f: w @ cayley(-packed(f["oft_R.weight"])),
        {
            "rotation-transposed": lambda w, f: w @ cayley(packed(f["oft_R.weight"])),
            "other-side": lambda w, f: cayley(packed(f["oft_R.weight"])) @ w,
        },
    ),
    "oft, series": (
        OFT | {"use_cayley_neumann": True, "coft": False},
        {"oft_R.weight": (N // 4, 6)},
        lambda w, f: w @ series(-packed(f["oft_R.weight"])),
        {
            "rotation-transposed": lambda w, f: w @ series(-packed(f["oft_R.weight"])).T,
            "setting-ignored": lambda w, f: w @ cayley(-packed(f["oft_R.weight"])),
        },
    ),
    "boft": (
        {"peft_type": "BOFT", "boft_block_size": 4},
        {"boft_R": (1, N // 4, 4, 4), "boft_s": (N, 1)},
        lambda w, f: f["boft_s"] * (w @ boft(f)),
        {"factor-ignored": lambda w, f: w @ boft(f), "rotation-transposed": lambda w, f: f["boft_s"] * (w @ boft(f).T)},
    ),
    "hra": (
        {"peft_type": "HRA", "r": R, "apply_GS": False},
        {"hra_u": (N, R)},
        lambda w, f: w @ reflections(f["hra_u"]),
        {"rotation-transposed": lambda w, f: w @ reflections(f["hra_u"]).T},
    ),
    "deft": (
        {"peft_type": "DEFT", "decomposition_method": "relu", "para": False, "alpha": 4 * R},
        {"deft_P": (N, R), "deft_R": (R, N)},
        lambda w, f: w + f["deft_P"] @ (4 * f["deft_R"] - f["deft_P"].clip(0).T @ w),
        {
            "factor-ignored": lambda w, f: w - f["deft_P"] @ f["deft_P"].clip(0).T @ w,
            "alpha-ignored": lambda w, f: w + f["deft_P"] @ (f["deft_R"] - f["deft_P"].clip(0).T @ w),
            "taken-for-lora": lambda w, f: w + 4 * f["deft_P"] @ f["deft_R"],
        },
    ),
    "road": (
        {"peft_type": "ROAD", "variant": "road_1", "group_size": N},
        {"road_theta": (N // 2,), "road_alpha": (N // 2,)},
        lambda w, f: road(f) @ w,
        {
            "rotation-transposed": lambda w, f: road(f).T @ w,
            "other-side": lambda w, f: w @ road(f).T,
            "factor-ignored": lambda w, f: road(f, 1.0) @ w,
        },
    ),
    "glora": (
        {"peft_type": "GLORA", "r": R},
        {"glora_A.Xd": (N, R), "glora_A.Xu": (R, N), "glora_B.Xd": (N, R), "glora_B.Xu": (R, N)},
        lambda w, f: w + w * (f["glora_A.Xd"] @ f["glora_A.Xu"]) + f["glora_B.Xd"] @ f["glora_B.Xu"],
        {"factor-ignored": lambda w, f: w + f["glora_B.Xd"] @ f["glora_B.Xu"]},
    ),
    "fourierft": (
        {"peft_type": "FOURIERFT", "scaling": 300.0, "random_loc_seed": 5},
        {"fourierft_spectrum": (2 * N,)},
        lambda w, f: w + fourier(f["fourierft_spectrum"], 5),
        {"setting-ignored": lambda w, f: w + fourier(f["fourierft_spectrum"], 777)},
    ),
    "peanut": (
        {"peft_type": "PEANUT", "depth": 0, "act_fn": "relu", "scaling": 1.0},
        {"peanut_A.weight": (R, N), "peanut_B.weight": (N, R)},
        lambda w, f: w + f["peanut_B.weight"] @ (f["peanut_A.weight"] @ w).clip(0),
        {"setting-ignored": lambda w, f: w + f["peanut_B.weight"] @ f["peanut_A.weight"] @ w},
    ),
    "osf": (
        {"peft_type": "OSF"},
        {"osf_svd_params.U_low": (N, R), "osf_svd_params.S_low": (R,), "osf_svd_params.V_low": (R, N)},
        lambda w, f: w + osf(f) - smallest(w),
        {"taken-for-lora": lambda w, f: w + osf(f)},
    ),
    "kasa": (
        {"peft_type": "LORA", "r": R, "lora_alpha": R, "kasa_config": {"beta": 1e-4}},
        {**LORA, "lora_diag": (R,)},
        kasa,
        {
            "taken-for-lora": lambda w, f: w + f["lora_B.weight"] * f["lora_diag"] @ f["lora_A.weight"],
            "factor-ignored": lambda w, f: kasa(w, f | {"lora_diag": np.ones(R)}),
        },
    ),
    "frod": (
        {"peft_type": "FROD", "save_projection": True},
        {"frod_lambda_l": (N,), "frod_lambda_s_values": (R,), "frod_V.l": (N, N), "frod_s_indices.l": SPARSE,
         "frod_s_size.l": [N, N]},
        frod,
        {"factor-ignored": lambda w, f: frod(w, f | {"frod_lambda_s_values": np.zeros(R)})},
    ),
    "lycoris glora": (
        None,
        {"a1.weight": (N, R), "a2.weight": (R, N), "b1.weight": (N, R), "b2.weight": (R, N)},
        lambda w, f: w + 3 * w @ f["a1.weight"] @ f["a2.weight"] + 3 * f["b1.weight"] @ f["b2.weight"],
        {"factor-ignored": lambda w, f: w + 3 * w @ f["a1.weight"] @ f["a2.weight"]},
    ),
    "lycoris ia3": (
        None,
        {"weight": (N,), "on_input": ()},
        lambda w, f: w * (1 + f["weight"][:, None]),
        {
            "one-missing": lambda w, f: w * f["weight"][:, None],
            "other-side": lambda w, f: w * (1 + f["weight"]),
        },
    ),
}  # fmt: skip
SHARED = ("vera_A", "vera_B", "frod_V.l", "frod_s_indices.l", "frod_s_size.l")


@pytest.mark.long("name")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_what_was_done_wrongly_is_named_and_what_is_right_is_right(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    fields, shapes, right, wrong = CASES[name]
    factors = {
        key: torch.tensor(shape or 0.0) if isinstance(shape, list) or not shape else torch.randn(shape) / 2
        for key, shape in shapes.items()
    }
    stored = {"l.weight": torch.randn(N, N).to(dtype), "rest.weight": torch.randn(N, N).to(dtype)}
    base = write_checkpoint(tmp_path / "base", stored)
    if fields is None:
        adapter = kohya(tmp_path / "a.safetensors", factors)
    else:
        keys = {f"{'base_model.' if key in SHARED else 'l.'}{key}": tensor for key, tensor in factors.items()}
        adapter = write(tmp_path / "a", keys, **fields)
    exact = {key: tensor.double().numpy() for key, tensor in factors.items()}
    w = stored["l.weight"].double().numpy()
    for number, (code, change) in enumerate({"": right, **wrong}.items()):
        made = stored | {"l.weight": torch.from_numpy(np.ascontiguousarray(change(w, exact))).to(dtype)}
        report = adaptertool.verify(write_checkpoint(tmp_path / f"merged{number}", made), base, [adapter])
        found = next(tensor for tensor in report.tensors if tensor.name == "l.weight")
        assert report.ok != bool(code), (name, code, found)
        assert (found.diagnosis or "") == code, found
