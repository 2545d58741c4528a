"""tinker-cookbook's way: one shard after the other.    python benchmarks/tinker_merge.py BASE ADAPTER OUT"""

import sys

from tinker_cookbook.weights import build_hf_model

base, adapter, out = sys.argv[1:]
build_hf_model(base_model=base, adapter_path=adapter, output_path=out, merge_strategy="shard")
