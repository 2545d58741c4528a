"""Adapters on a model in memory: the weights are those of the merge, and afterwards the bits are those from before."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, load, lora_factors, same_bits, write_adapter, write_checkpoint
from in_memory import assert_same, changed, enter, near, restored, state
from layers import DTYPES, LAYERS, Attention, make_adapter, make_base, peft_merge
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

import adaptertool
from adaptertool.errors import AdapterToolError, InputError, MismatchError, NonFiniteError, UsageError
from adaptertool.live import change as change_module
from adaptertool.live import session as session_module


@pytest.fixture(scope="module")
def trained() -> Any:
    return AutoModelForCausalLM.from_pretrained(FIXTURES / "base")


@pytest.mark.long("dtype")
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.3, 1, "1.5"])
def test_every_layer(tmp_path: Path, dtype: torch.dtype, dora: bool, alpha: Any) -> None:
    """Against PEFT's merge in float64, and nearly all of it equal to ours to the last bit."""
    zoo, base = make_base(tmp_path / "base", dtype)
    patterns = {"rank_pattern": {"conv2": 2, "linear": 5}, "alpha_pattern": {"embedding": 9}, "use_rslora": True}
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=LAYERS, use_dora=dora, bias="all", **patterns)
    exact = peft_merge(zoo, adapter)
    adaptertool.wise(base, adapter, tmp_path / "out", alpha)
    ours, equal, count = load(tmp_path / "out"), 0, 0
    with restored(zoo) as before, adaptertool.applied(zoo, adapter, alpha) as model:
        assert model is zoo
        for name, tensor in zoo.state_dict().items():
            old = before[name][3].double()
            assert near(tensor, old, old + float(alpha) * (exact[name] - old)), name
            equal += int((tensor == ours[name]).sum())
            count += tensor.numel()
        assert len(changed(before, zoo)) == len(LAYERS) + 6
    assert equal > 0.995 * count


@pytest.mark.parametrize("name", ["lora", "rslora"])
def test_trained_fixtures(tmp_path: Path, trained: Any, name: str) -> None:
    adaptertool.merge(FIXTURES / "base", [FIXTURES / name], tmp_path / "out", precision="fast")
    merged = load(tmp_path / "out")
    with restored(trained), adaptertool.applied(trained, FIXTURES / name):
        ours = trained.state_dict()
        for key, tensor in merged.items():
            assert (ours[key] != tensor).float().mean() < 1e-3  # sums in another order
            assert torch.allclose(ours[key].float(), tensor.float(), rtol=2**-7, atol=1e-7)


@pytest.mark.parametrize("dora", [False, True])
def test_logits_in_float64_are_those_of_the_unmerged_adapter(tmp_path: Path, trained: Any, dora: bool) -> None:
    adapter = make_adapter(tmp_path / "a", trained, target_modules=["q_proj", "down_proj"], use_dora=dora)
    model, tokens = copy.deepcopy(trained).double(), torch.arange(40).reshape(2, 20)
    expected = PeftModel.from_pretrained(copy.deepcopy(model), adapter, autocast_adapter_dtype=False).double()(tokens)
    with adaptertool.applied(model, adapter):
        assert torch.allclose(model(tokens).logits, expected.logits, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dora", [False, True])
def test_several_adapters_with_weights(tmp_path: Path, dora: bool) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapters = [
        make_adapter(tmp_path / str(number), zoo, target_modules=["linear", "turned"], use_dora=dora)
        for number in range(2)
    ]
    adaptertool.merge(base, adapters, tmp_path / "out", weights=[0.5, "-0.25"])
    with restored(zoo), adaptertool.applied(zoo, adapters, weights=[0.5, "-0.25"]):
        for name, tensor in load(tmp_path / "out").items():
            assert torch.allclose(zoo.state_dict()[name].float(), tensor.float(), rtol=2**-7, atol=1e-6)
    with restored(zoo) as before, adaptertool.applied(zoo, adapters, weights=[0, 0]):
        assert not changed(before, zoo)


def test_bias_of_the_second_factor_saved_modules_and_token_rows(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    options = {"modules_to_save": ["rest", "conv1"], "trainable_token_indices": {"embedding": [4, 2]}}
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"], lora_bias=True, **options)
    adaptertool.wise(base, adapter, tmp_path / "out", 0.25)
    with restored(zoo) as before, adaptertool.applied(zoo, adapter, 0.25):
        assert len(changed(before, zoo)) == 7
        for name, tensor in load(tmp_path / "out").items():
            assert torch.allclose(zoo.state_dict()[name], tensor, rtol=2**-22, atol=1e-9)
    with adaptertool.applied(zoo, adapter):
        assert same_bits(zoo.rest.weight, load(adapter)["base_model.model.rest.weight"])


def test_multihead_attention(tmp_path: Path) -> None:
    model, x = Attention().eval(), torch.randn(2, 5, 16)
    config = LoraConfig(target_modules=["attn", "head"], init_lora_weights=False)
    tuned = get_peft_model(copy.deepcopy(model), config)
    tuned.save_pretrained(tmp_path / "a")
    with restored(model), adaptertool.applied(model, tmp_path / "a"):
        expected = model(x)
        assert (expected - tuned.eval()(x)).abs().max() < 1e-5
    with tuned.disable_adapter(), adaptertool.applied(tuned, tmp_path / "a"):
        assert (tuned(x) - expected).abs().max() < 1e-5


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, _ = make_base(tmp_path / "base", torch.float32)
    options = {"trainable_token_indices": {"embedding": [4, 30]}}
    for number, dora in enumerate((True, False)):
        layers = ["linear", "turned", "conv2"]
        adapter = make_adapter(tmp_path / str(number), zoo, target_modules=layers, use_dora=dora, **options)
        with adaptertool.applied(zoo, adapter, 0.5):
            whole = copy.deepcopy(zoo.state_dict())
        monkeypatch.setattr(change_module, "BLOCK_ELEMENTS", 24)
        with adaptertool.applied(zoo, adapter, 0.5):
            for name, tensor in zoo.state_dict().items():
                assert torch.allclose(tensor, whole[name], rtol=2**-22, atol=0), name


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit])
def test_restores_after_what_the_block_raises(trained: Any, stop: type[BaseException]) -> None:
    with restored(trained) as before, pytest.raises(stop), adaptertool.applied(trained, FIXTURES / "lora"):
        assert len(changed(before, trained)) == 28
        raise stop


@pytest.mark.parametrize("stop", [AdapterToolError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["before", "after"])
def test_restores_what_was_changed_when_applying_fails(
    trained: Any, stop: BaseException, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the third tensor."""
    real, calls = session_module.change, []

    def failing(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) < 3 or when == "after":
            real(*arguments)
        if len(calls) == 3:
            raise stop

    monkeypatch.setattr(session_module, "change", failing)
    with restored(trained), pytest.raises(type(stop)), adaptertool.applied(trained, FIXTURES / "lora"):
        pytest.fail("not to be reached")
    assert len(calls) == 3


def test_an_interrupt_while_restoring_waits(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = session_module.Session._restore, []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(session_module.Session, "_restore", interrupted)
    with restored(trained), pytest.raises(KeyboardInterrupt), adaptertool.applied(trained, FIXTURES / "lora"):
        pass
    assert len(calls) == 28 + 2


def test_not_finite_results_are_errors_that_name_the_tensor(tmp_path: Path) -> None:
    zoo, _ = make_base(tmp_path / "base", torch.float16)
    good = make_adapter(tmp_path / "a", zoo, target_modules=["linear", "turned"])
    huge = lora_factors("turned", (14, 10))
    huge["turned.lora_B.weight"].fill_(1e6)
    bad = write_adapter(tmp_path / "b", huge)
    with restored(zoo), pytest.raises(NonFiniteError, match=r"turned\.weight: the result of turned is not finite"):
        enter(zoo, [good, bad])


def test_special_values_come_back(tmp_path: Path) -> None:
    """NaN with any payload in what is not changed, −0 and subnormals in what is."""
    zoo, _ = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"])
    with torch.no_grad():
        zoo.linear.weight[0, :3] = torch.tensor([-0.0, 1e-45, -1e-40])
        zoo.conv1.weight.view(torch.int32)[0, 0] = 0x7FC12345
    with restored(zoo), adaptertool.applied(zoo, adapter, 0.5):
        pass
    factors = lora_factors("linear", (20, 12))
    factors["linear.lora_B.weight"].zero_()
    with restored(zoo) as before, adaptertool.applied(zoo, write_adapter(tmp_path / "b", factors), 0.5):
        assert not changed(before, zoo)


@pytest.mark.parametrize("restore", ["copy", "recompute"])
def test_a_sweep_starts_from_the_original_bits_each_time(trained: Any, restore: str) -> None:
    options = {"restore": restore, "base": FIXTURES / "base" if restore == "recompute" else None}
    single = {}
    for alpha in (0.25, 0.5, 1.0):
        with adaptertool.applied(trained, FIXTURES / "lora", alpha):
            single[alpha] = copy.deepcopy(trained.state_dict())
    with restored(trained) as before:
        seen = []
        for alpha, model in adaptertool.sweep(trained, FIXTURES / "lora", "0:1:0.25", **options):
            assert model is trained
            seen.append(alpha)
            if alpha == 0:
                assert_same(before, model)
            if alpha in single:
                assert all(same_bits(t, single[alpha][name]) for name, t in trained.state_dict().items())
        assert seen == [0, 0.25, 0.5, 0.75, 1]


def test_a_sweep_that_is_left(trained: Any) -> None:
    with restored(trained):
        for _ in adaptertool.sweep(trained, FIXTURES / "lora", [1, 0.5]):
            break
    steps = adaptertool.sweep(trained, FIXTURES / "lora", [1, 0.5])
    with restored(trained):
        next(steps)
        with pytest.raises(UsageError, match="already"), adaptertool.applied(trained, FIXTURES / "rslora"):
            pass
        steps.close()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="twice"):
        adaptertool.sweep(trained, FIXTURES / "lora", [1, 1])


def test_nesting_is_refused_and_side_by_side_is_not(tmp_path: Path, trained: Any) -> None:
    """Two blocks would round twice, and left in the wrong order would restore the wrong bits."""
    with restored(trained), adaptertool.applied(trained, FIXTURES / "lora"):
        inside = state(trained)
        with pytest.raises(UsageError, match="to one call"), adaptertool.applied(trained, FIXTURES / "rslora"):
            pass
        assert_same(inside, trained)
    zoo, _ = make_base(tmp_path / "base")
    linear, turned = (make_adapter(tmp_path / name, zoo, target_modules=[name]) for name in ("linear", "turned"))
    with restored(zoo) as before, adaptertool.applied(zoo, linear), adaptertool.applied(zoo, turned):
        assert changed(before, zoo) == {"linear.weight", "turned.weight"}


def test_recompute_keeps_no_copy_and_checks_the_base(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(trained)
    monkeypatch.setattr(session_module, "Copies", None)  # would raise
    with restored(model), pytest.raises(TypeError), adaptertool.applied(model, FIXTURES / "lora"):
        pass
    options = {"restore": "recompute", "base": FIXTURES / "base"}
    monkeypatch.undo()
    with restored(model) as before, adaptertool.applied(model, FIXTURES / "lora", **options):
        assert len(changed(before, model)) == 28
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1
    wrong = r"does not hold what model\.layers\.1\.mlp\.up_proj\.weight has in memory"
    with restored(model), pytest.raises(MismatchError, match=wrong):
        enter(model, FIXTURES / "lora", **options)
    for bad in ({"restore": "recompute"}, {"base": FIXTURES / "base"}, {"restore": "none"}):
        with pytest.raises(UsageError, match="restore is"), adaptertool.applied(model, FIXTURES / "lora", **bad):
            pass


def test_recompute_casts_as_on_loading_and_notices_a_base_that_changes(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    zoo = zoo.bfloat16()
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=LAYERS)
    with restored(zoo), adaptertool.applied(zoo, adapter, restore="recompute", base=base):
        pass
    tensors = load(base)
    with (
        pytest.raises(InputError, match="load the model again"),
        adaptertool.applied(zoo, adapter, restore="recompute", base=base),
    ):
        write_checkpoint(base, {name: tensor + 1 for name, tensor in tensors.items()})


def test_parameters_stay_what_they_are_for_optimizers_and_autograd(tmp_path: Path) -> None:
    zoo, _ = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"])
    optimizer, x = torch.optim.SGD(zoo.parameters(), lr=0.1), torch.randn(3, 12, requires_grad=True)
    outside = zoo.linear(x).sum()
    with adaptertool.applied(zoo, adapter):
        inside = zoo.linear(x).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            outside.backward()
        weight = zoo.linear.weight.detach().clone()
        zoo.linear(x).sum().backward()
        assert torch.allclose(x.grad, weight.sum(0).expand(3, 12))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        inside.backward()
    before = zoo.linear.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, zoo.linear.weight)


def test_settings_of_the_caller_do_not_matter_and_stay(tmp_path: Path) -> None:
    zoo, _ = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=LAYERS, use_dora=True)
    with adaptertool.applied(zoo, adapter):
        plain = copy.deepcopy(zoo.state_dict())
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for context in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.enable_grad()):
            with restored(zoo), context, adaptertool.applied(zoo, adapter):
                assert all(same_bits(tensor, plain[name]) for name, tensor in zoo.state_dict().items())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    with torch.inference_mode():
        frozen = copy.deepcopy(zoo)
    with restored(frozen), adaptertool.applied(frozen, adapter):
        assert all(same_bits(tensor, plain[name]) for name, tensor in frozen.state_dict().items())


def test_a_weight_that_does_not_follow_its_rows_in_memory(tmp_path: Path) -> None:
    zoo, _ = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear", "conv2"])
    with adaptertool.applied(zoo, adapter):
        plain = copy.deepcopy(zoo.state_dict())
    zoo.linear.weight = nn.Parameter(zoo.linear.weight.detach().T.contiguous().T)
    zoo.conv2 = zoo.conv2.to(memory_format=torch.channels_last)
    assert not zoo.linear.weight.is_contiguous()
    with restored(zoo), adaptertool.applied(zoo, adapter):
        assert all(tensor.equal(plain[name]) for name, tensor in zoo.state_dict().items())


def test_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import adaptertool\n"
        "for call in (lambda: adaptertool.applied(None, 'a').__enter__(), lambda: adaptertool.sweep(None, 'a', 1),\n"
        "             lambda: adaptertool.scaled(None, 1).__enter__()):\n"
        "    try: call()\n"
        "    except adaptertool.AdapterToolError as error: print(type(error).__name__, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = "UsageError models in memory need torch: pip install 'adaptertool[live]'"
    assert [text.startswith(line) for text in result.stdout.splitlines()] == [True] * 3
