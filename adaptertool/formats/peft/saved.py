"""The plain tensors of PEFT's adapters: what takes the place of a tensor of the base, under several keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.reader import same_bytes
from adaptertool.formats.peft.keys import TUNER_PARAMETER
from adaptertool.spec.tensors import Ref

# torch.nn.MultiheadAttention: its input and its output projection are changed together, and PEFT applies the change of
# the second twice, also in training (lora.MultiheadAttention; its source says that this is known).
OUT_PROJ, OUT_PROJ_TIMES = ".base_layer.out_proj", 2

# Parts of a key that name something with a meaning of its own; never to be taken for a plain tensor name.
_REFUSED = {
    "modules_to_save": "a saved module below another is not known",
    "original_module": "a saved module below another is not known",
    "token_adapter": "only trainable_tokens_delta and the base layer of a token adapter are known",
    "base_layer": "only weight and bias of a base layer are known",
}


class Saved:
    """Gathers saved tensors by the names of the tensors that they replace."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.tensors: dict[str, Ref] = {}
        self._copies: dict[str, Ref] = {}  # X.modules_to_save: the same as X, where both are there
        self._originals: dict[str, Ref] = {}  # X.original_module: what the base had

    def add(self, key: str, ref: Ref) -> None:
        """Add a tensor by the name of what it replaces. Raises UnsupportedError for a key that means something else,
        and InputError where two are for one name."""
        name = re.sub(r"\.base_layer\.(weight|bias)$", r".\1", key).replace(f"{OUT_PROJ}.", ".out_proj.")
        name = re.sub(r"\.token_adapter\.weight$", ".weight", name)
        into = self.tensors
        for part, other in (("modules_to_save", self._copies), ("original_module", self._originals)):
            if f".{part}." in name:
                name, into = name.replace(f".{part}.", ".", 1), other
                break
        for part in name.split("."):
            if part in _REFUSED or TUNER_PARAMETER.fullmatch(part):
                reason = _REFUSED.get(part, "this factor is not known")
                raise UnsupportedError(f"{self._file}: {shown(ref.spec.name)}: {reason}")
        if name in into:
            raise InputError(f"{self._file} holds two tensors for {shown(name)}")
        into[name] = ref

    def refuse_beside(self, factored: Mapping[str, bool]) -> None:
        """Raises UnsupportedError for a tensor that is saved beside factors for it, and not as their base layer: PEFT
        0.21.2 loads one of them, and leaves the other out without a word.

        factored: the tensors with factors, and whether modules_to_save names their module
        """
        for name, ref in self.tensors.items():
            if name in factored and (factored[name] or ".base_layer." not in ref.spec.name):
                raise UnsupportedError(
                    f"{self._file}: {shown(ref.spec.name)} is saved whole, and there are factors for {shown(name)} as "
                    "well; PEFT leaves the factors out where modules_to_save names the module, and else the saved "
                    "tensor: remove one of them; a weight that the factors come on top of has base_layer in its key"
                )

    def without_copies(self) -> dict[str, str]:
        """The keys that play no part, each with what it is. Raises where a copy is none.

        PEFT saves a module of modules_to_save a second time, with what the base had, by save_embedding_layers=True or
        bias="all".
        """
        ignored = {}
        for name, ref in self._copies.items():
            other = self.tensors.setdefault(name, ref)
            if other is ref:
                continue
            if (other.spec.dtype, other.shape) != (ref.spec.dtype, ref.shape) or not same_bytes(other, ref):
                raise InputError(
                    f"{self._file}: {shown(ref.spec.name)} and {shown(other.spec.name)} are both saved for "
                    f"{shown(name)}, and differ"
                )
            ignored[ref.spec.name] = f"the same as {shown(other.spec.name)}"
        for name, ref in self._originals.items():
            if name not in self.tensors:
                raise InputError(
                    f"{self._file}: {shown(ref.spec.name)} is what the base had, with nothing in its place"
                )
            ignored[ref.spec.name] = "what the base had"
        return ignored
