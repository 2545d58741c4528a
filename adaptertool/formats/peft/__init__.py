"""PEFT: its adapters read, described layer by layer, and written."""
