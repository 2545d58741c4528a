"""Initialisers of LoRA, by the names that PEFT has for them (`init_lora_weights`)."""

# Those that leave the base weights as they are.
HARMLESS_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
