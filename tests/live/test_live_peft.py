"""Models in memory with tied ends, models that PEFT has wrapped, and other wrappers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_memory import TOKENS, changed, enter, llama, restored, tuned_on
from torch import nn

import adaptertool
from adaptertool.errors import UnsupportedError


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_one_of_two_tied_ends_is_changed_alone(tmp_path: Path, which: str, alpha: float) -> None:
    """PEFT's forward changes one end only, and so do we: for the block they are two parameters."""
    model = llama(tie_word_embeddings=True)
    tuned = tuned_on(model, tmp_path / "a", target_modules=[which])
    parameters = list(model.parameters())
    with restored(model), adaptertool.applied(model, tmp_path / "a", alpha):
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is (alpha == 0)
        assert model.lm_head.weight.requires_grad
        if alpha == 1:
            assert torch.allclose(model(TOKENS).logits, tuned(TOKENS).logits, rtol=1e-6, atol=1e-6)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.filterwarnings("ignore")
def test_tied_ends_that_are_changed_alike_stay_tied(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    tuned = tuned_on(model, tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=[3, 10])
    with restored(model), adaptertool.applied(model, tmp_path / "a"):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.allclose(model(TOKENS).logits, tuned(TOKENS).logits, rtol=1e-6, atol=1e-6)


def test_what_ties_is_seen_in_memory_and_said(tmp_path: Path) -> None:
    """Two parameters over one storage, whatever a config says."""
    model = llama(tie_word_embeddings=False)
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach())
    tuned_on(llama(tie_word_embeddings=False), tmp_path / "a", target_modules=["lm_head"])
    with (
        restored(model) as before,
        pytest.warns(UserWarning, match="apart while the adapter is applied"),
        adaptertool.applied(model, tmp_path / "a"),
    ):
        assert changed(before, model) == {"lm_head.weight"}


def test_peft_models(tmp_path: Path) -> None:
    """Their base weights, as long as no adapter of theirs acts."""
    model = llama()
    tuned_on(model, tmp_path / "a", target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    wrapped = tuned_on(model, tmp_path / "b", target_modules="all-linear", modules_to_save=["lm_head"])
    with adaptertool.applied(model, tmp_path / "a", 0.3):
        expected = model(TOKENS).logits
    with restored(wrapped), pytest.raises(UnsupportedError, match=r"adapter default active.*disable_adapter"):
        enter(wrapped, tmp_path / "a")
    with restored(wrapped), wrapped.disable_adapter(), adaptertool.applied(wrapped, tmp_path / "a", 0.3):
        assert torch.equal(wrapped(TOKENS).logits, expected)
    wrapped.merge_adapter()
    with pytest.raises(UnsupportedError, match="merged by PEFT"), adaptertool.applied(wrapped, tmp_path / "a"):
        pass


def test_wrappers_around_a_model(tmp_path: Path) -> None:
    model = llama()
    tuned_on(model, tmp_path / "a", target_modules=["q_proj"])
    compiled: Any = torch.compile(model, backend="eager")
    model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp, backend="eager")
    for whole in (compiled, nn.DataParallel(model)):
        with restored(model) as before, adaptertool.applied(whole, tmp_path / "a"):
            assert changed(before, model) == {"model.layers.0.self_attn.q_proj.weight"}
