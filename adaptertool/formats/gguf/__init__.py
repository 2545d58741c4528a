"""GGUF adapters, as llama.cpp's convert_lora_to_gguf.py writes them."""
