"""What diffusers writes into the metadata of its file: the config of PEFT's LoRA, for each component of a pipeline.

`lora_adapter_metadata` is one JSON object with the fields of LoraConfig: `unet.r`, `text_encoder.lora_alpha`; or `r`,
in files of one model alone. Where it is there it is what diffusers 0.42.1 goes by.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.jsonfile import parse_json
from adaptertool.formats.peft.config import LoraConfig, parse_config
from adaptertool.formats.peft.fields import LORA
from adaptertool.formats.peft.modules import rank_of
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.lora import A
from adaptertool.spec.adapter import Module

KEY = "lora_adapter_metadata"
# Fields of PEFT's that go with tensors which files of diffusers do not have
_NOT_HERE = ("target_parameters", "trainable_token_indices", "use_bdlora", "modules_to_save")


class Said:
    """The config of each component; nothing where the metadata has none."""

    def __init__(self, file: Path, metadata: Mapping[str, str]) -> None:
        """Raises InputError for what is no JSON object."""
        self._file = file
        self.fields = parse_json(text.encode(), f"{file}: {KEY}") if (text := metadata.get(KEY)) else {}
        self._configs: dict[str, LoraConfig] = {}

    def scaled(self, module: Module, *, bias: bool) -> Module:
        """The change of a weight with the scale that the config of its component gives it.

        bias: its second factor has a bias
        Raises InputError where config and factors do not go together, UnsupportedError for what is not handled.
        """
        component, config = self._config_of(module.name)
        if A not in module.factors:
            raise UnsupportedError(
                f"{self._file}: {shown(module.name)} is of kind {module.kind}, and {KEY} is a config of LoRA"
            )
        for field, said, there in (
            ("use_dora", config.dora, MAGNITUDE in module.factors),
            ("lora_bias", config.bias, bias),
        ):
            if said != there:
                raise InputError(
                    f"{config.path}: {field} is {str(said).lower()}, and {shown(module.name)} has "
                    f"{'such a tensor' if there else 'no tensor for it'}"
                )
        path = module.name.removeprefix(component)
        return module._replace(scale=config.scale_of(path), rank=rank_of(config, self._file, path, module.factors[A]))

    def _config_of(self, name: str) -> tuple[str, LoraConfig]:
        """(what the names of the component begin with, its config)"""
        component = "" if "r" in self.fields else f"{name.partition('.')[0]}."
        if component not in self._configs:
            own = {key.removeprefix(component): self.fields[key] for key in self.fields if key.startswith(component)}
            where = Path(f"{self._file}: {KEY}" + (f" of {component[:-1]}" if component else ""))
            if not own:
                raise InputError(f"{where} is not there, so the scale of {shown(name)} is not known")
            if field := next((field for field in _NOT_HERE if own.get(field)), None):
                raise UnsupportedError(f"{where}: {field} is not supported in files of diffusers")
            if (tag := own.setdefault("peft_type", LORA)) != LORA:
                raise UnsupportedError(f"{where}: peft_type {shown(tag)[:80]} is not supported there; {LORA} is")
            self._configs[component] = parse_config(where, own)
        return component, self._configs[component]
