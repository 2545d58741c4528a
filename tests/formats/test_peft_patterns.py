"""rank_pattern and alpha_pattern: matched as PEFT matches them, and never for ever."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import lora_factors
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from peft_files import C_PROJ, adapter, edits, refusal

from adaptertool.errors import InputError, UnsupportedError
from adaptertool.formats.peft.config import parse_config

# Patterns.


@pytest.mark.parametrize(
    "pattern", ["(", "[", "*", "a{2,1}", "(?P<x>a)(?P<x>b)", "\\", "(?\x1b", "(?i)q_proj", "\\2"], ids=ascii
)
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_peft_could_not_match_are_refused(base: Path, field: str, pattern: str) -> None:
    assert field in refusal(base, adapter(base, **{field: {pattern: 4}}))


PATTERNS = st.sampled_from(
    [
        "q_proj", "k_proj", "_proj", "proj", ".*", ".*proj", ".", "", "^model", "model", "layers.0.q_proj",
        "layers\\.0\\..*", "layers\\.\\d+\\.q_proj", "(q|k)_proj", "[qk]_proj", "q_proj|k_proj", "^q_proj$",
        "q_proj\\b", "(?i:Q_PROJ)", "(?i)q_proj", "(?!q)._proj", "(?<=0\\.)q_proj", "x+y", "x\\+y", "q(1)",
        "q\\(1\\)", "a)|(q_proj", "(", "(q)_proj\\2", "\\1", "\u00e9",
    ]
)  # fmt: skip
PARTS = st.sampled_from(
    ["model", "layers", "0", "1", "q_proj", "k_proj", "mlp", "x+y", "xxy", "q(1)", "q1", "\u00e9", "Q_PROJ"]
)


def compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
        re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return False
    return True


@settings(deadline=None, max_examples=600)
@given(
    patterns=st.dictionaries(PATTERNS, st.integers(1, 99), max_size=3),
    module=st.lists(PARTS, min_size=1, max_size=4).map(".".join),
)
def test_patterns_are_matched_as_peft_matches_them(patterns: dict[str, int], module: str) -> None:
    fields = {"peft_type": "LORA", "r": 7, "lora_alpha": 5.0, "rank_pattern": patterns, "alpha_pattern": patterns}
    if not all(map(compiles, patterns)):
        with pytest.raises(InputError, match="rank_pattern"):
            parse_config(Path("adapter_config.json"), fields)
        return
    key = get_pattern_key(patterns.keys(), module)
    config = parse_config(Path("adapter_config.json"), fields)
    assert config.rank_of(module) == patterns.get(key, 7)
    assert config.scale_of(module) == patterns.get(key, 5.0) / patterns.get(key, 7)


def test_name_with_signs_of_a_pattern_still_finds_its_own_entry(base: Path) -> None:
    """PEFT looks a module up by its name where no pattern matches: `x+y` does not match itself."""
    folder = adapter(base, lora_factors("x+y", (8, 6)), alpha_pattern={"x+y": 4})
    assert edits(base, folder)["x+y.weight"][0].scale == 1.0


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|a)*b"])
def test_pattern_that_would_take_for_ever_is_refused(base: Path, pattern: str) -> None:
    module = "a" * 60
    folder = adapter(base, lora_factors(module, (8, 6)), alpha_pattern={pattern: 4})
    script = "import sys; from adaptertool.tasks.merge import prepare_merge; prepare_merge(sys.argv[1], [sys.argv[2]])"
    done = subprocess.run(
        [sys.executable, "-c", script, base, folder],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (5, 5)),
    )
    assert "InputError" in done.stderr or "UnsupportedError" in done.stderr
    assert "alpha_pattern" in done.stderr


@pytest.mark.parametrize("pattern", ["(a*)*b", "(?:a|b)+", ".*.*.*.*.*b", "(a){9}"])
def test_patterns_that_may_take_for_ever(base: Path, pattern: str) -> None:
    slow = adapter(base, C_PROJ, rank_pattern={pattern: 4})
    assert "may take for ever" in refusal(base, slow, UnsupportedError)
