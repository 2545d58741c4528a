"""Weights that are stored as codes and scales, one file for each way. To add one: write the file, add one line here."""

from adaptertool.codecs.quantised.awq import AWQ
from adaptertool.codecs.quantised.bitsandbytes import BNB_4
from adaptertool.codecs.quantised.fp4 import FP4_PACKED, NVFP4
from adaptertool.codecs.quantised.fp8 import FP8
from adaptertool.codecs.quantised.gpt_oss import GPT_OSS
from adaptertool.codecs.quantised.gptq import GPTQ
from adaptertool.codecs.quantised.integers import INT_8
from adaptertool.codecs.quantised.packed import PACKED
from adaptertool.codecs.quantised.record import Format, Settings, Stored, Weight

FORMATS: tuple[Format, ...] = (FP8, INT_8, PACKED, FP4_PACKED, NVFP4, GPT_OSS, BNB_4, GPTQ, AWQ)
METHODS = frozenset().union(*(one.methods for one in FORMATS))  # quant_method, of those that are decoded

__all__ = ["FORMATS", "METHODS", "Format", "Settings", "Stored", "Weight"]
