"""Configurations of mergekit that are wrong, or that are not built: each is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

import adaptertool
from adaptertool.errors import AdapterToolError

GOOD = """models:
  - model: one
    parameters: {weight: 0.5}
  - model: two
merge_method: linear
dtype: bfloat16
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("weight: 0.5", "wieght: 0.5", 3, "weight"),
        ("weight: 0.5", "weight: 1e400", 3, "a number that a float has"),
        ("weight: 0.5", "weight: 1e999999999", 3, "a number that a float has"),
        ("weight: 0.5", "weight: 1e-999999999", 3, "a number that a float has"),
        ("weight: 0.5", "weight: heavy", 3, "heavy"),
        ("weight: 0.5", "weight: .nan", 3, "nan"),
        ("merge_method: linear", "merge_method: liner", 5, "linear"),
        ("merge_method: linear", "merge_method: ram", 5, "ram"),
        ("dtype: bfloat16", "dtype: int7", 6, "int7"),
        ("dtype: bfloat16", "dtyp: bfloat16", 6, "dtype"),
        ("dtype: bfloat16", "dtype: bfloat16\ndtype: float16", 7, "dtype"),
        ("  - model: two\n", "  - modle: two\n", 4, "model"),
        ("dtype: bfloat16", "slices: []", 1, "just one of models, slices and modules"),
    ],
)
def test_the_line_is_named(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    path = tmp_path / "config.yml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(AdapterToolError) as caught:
        adaptertool.mergekit(path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}:{line}:"), caught.value
    assert said in str(caught.value) and not (tmp_path / "out").exists()
