"""Initialisers of LoRA, by the names that PEFT has for them (`init_lora_weights`)."""

# Those that leave the base weights as they are.
HARMLESS_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")

_RESIDUAL = (
    "may have changed the base weights, so this adapter may belong to the residual model, not to the original: convert "
    "it to plain LoRA first (PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...))"
)
_QUANTISED = (
    "made quantised weights of the base, which the factors belong to: save that model (PEFT: "
    "unload().save_pretrained(...)), set init_lora_weights to true, and merge onto it"
)


def changed_base(init: object) -> str | None:
    """What follows the name of an initialiser that changes the base, and what to do; None where it does not."""
    if init in HARMLESS_INITS:
        return None
    return _QUANTISED if init == "loftq" else _RESIDUAL
