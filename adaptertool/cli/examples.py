"""The examples at the end of each command's help; tests run them in this order, beside what they name."""

from __future__ import annotations

from collections.abc import Mapping

# Command -> (what it does, what is typed)
EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "merge": (
        ("One adapter into its base, and checked as it is written:", "adaptertool merge base lora -o merged --verify"),
        ("Two, each with a weight; what would be done, and nothing written:",
         "adaptertool merge base lora rslora -w 0.7 -w 0.3 -o both --dry-run"),
        ("Less of it in the MLP of the first layer:",
         "adaptertool merge base lora -w 0.8 -w 'layers.0.mlp=0.5' -o layered"),
        ("By TIES, half of each change kept:",
         "adaptertool merge base lora rslora --method ties --density 0.5 -o ties"),
        ("By DELLA, a third of each change kept in the MLP, and all of it elsewhere:",
         "adaptertool merge base lora --method della --density mlp=0.3 -o thin"),
    ),
    "wise": (
        ("A third of the way to a fine-tuned checkpoint:", "adaptertool wise base tuned --alpha 0.33 -o third"),
        ("Eleven checkpoints, with one read of the base:", "adaptertool wise base tuned --alpha 0:1:0.1 -o sweep"),
        ("Some of them scored by a program of yours, and none kept:",
         "adaptertool wise base tuned --alpha 0,0.5,1 --score './score {}'"),
    ),
    "mergekit": (
        ("What would be done, and nothing written:", "adaptertool mergekit ties.yml -o planned --dry-run"),
        ("The same, made; OUT has the configuration beside it:", "adaptertool mergekit ties.yml -o by-mergekit"),
    ),
    "layers": (
        ("The first and the last layer of four, as a model of two:", "adaptertool layers base 0,3 -o pruned"),
        ("The middle twice; the map from old to new, and nothing written:",
         "adaptertool layers base 0-2,1-3 -o deeper --dry-run"),
    ),
    "sum": (
        ("What one adapter has, without what another has:", "adaptertool sum rslora lora -w 1 -w -1 -o difference"),
        ("Two as one, of rank 8 at most:", "adaptertool sum lora rslora --rank 8 -o two"),
    ),
    "truncate": (
        ("The smallest ranks that keep 99% of the squared spectrum:",
         "adaptertool truncate lora --energy 0.99 -o smaller"),
        ("Rank 4, and how far the merged weights move by that:",
         "adaptertool truncate lora --rank 4 --base base -o four"),
    ),
    "extract": (
        ("A LoRA of rank 16 out of a full fine-tuning:", "adaptertool extract base tuned --rank 16 -o extracted"),
        ("As large as it must be to lose a tenth of the change:",
         "adaptertool extract base tuned --max-error 0.1 --dtype bf16 -o near"),
    ),
    "convert": (
        ("For MLX:", "adaptertool convert lora --to mlx -o lora-mlx"),
        ("For llama.cpp, whose names only the base tells:",
         "adaptertool convert lora --to gguf --base base -o lora.gguf"),
    ),
    "plan": (
        ("In parts, on several machines that see the same files:",
         "adaptertool plan merge base lora -o parted --plan plan.json"),
        ("Both ends of a sweep, to begin with:",
         "adaptertool plan wise base tuned --alpha 0,1 -o steps --plan p.json"),
    ),
    "run": (
        ("The first of two parts; the second may be run at the same time, elsewhere:",
         "adaptertool run plan.json --part 0/2"),
        ("Whatever is missing:", "adaptertool run plan.json --part 0/1"),
    ),
    "finish": (
        ("When all parts are made:", "adaptertool finish plan.json"),
    ),
    "apply": (
        ("Plan all steps of a recipe, and write nothing:", "adaptertool apply recipe.yaml --dry-run"),
        ("Run them:", "adaptertool apply recipe.yaml"),
        ("With which weight is a score of yours highest? OUT is made with that:",
         "adaptertool apply recipe.yaml -o chosen \\\n"
         "        --sweep both.weights.0=0,0.5 --score './score {}'"),
        ("Make the same again, to the same bytes, from what stands beside it:",
         "adaptertool apply applied/adaptertool.manifest.json -o again"),
    ),
    "verify": (
        ("Is it what it should be, whatever tool made it?", "adaptertool verify merged base lora"),
        ("Bit for bit, with a test case for each tensor:",
         "adaptertool verify merged base lora --strict --junit verify.xml"),
        ("Are the files still those that were written?", "adaptertool verify merged"),
    ),
    "drift": (
        ("What rounding does to the merged weights:", "adaptertool drift base lora"),
        ("The same of a merge by another tool, as a gate of a pipeline:",
         "adaptertool drift base lora --merged merged --fail-above 0.01"),
    ),
    "diff": (
        ("Which tensors did the merge change?", "adaptertool diff base merged"),
        ("And of which rank is what a training has changed?", "adaptertool diff base tuned --ranks -v"),
    ),
    "evaluate": (
        ("Unmerged and merged on prompts, a line of JSON each:",
         "adaptertool evaluate base lora --merged merged --prompts prompts.jsonl"),
        ("How well two adapters, each for itself, know the facts in a file:",
         "adaptertool evaluate base lora rslora --each --prompts facts.jsonl"),
    ),
    "inspect": (
        ("What is in an adapter, and does it fit?", "adaptertool inspect lora --base base"),
        ("What is in a checkpoint, and who made it?", "adaptertool inspect merged"),
    ),
    "clean": (("After a run that was killed:", "adaptertool clean merged"),),
    "schema": (
        ("Which there are:", "adaptertool schema"),
        ("That of what `verify --json` prints:", "adaptertool schema verify"),
    ),
    "completion": (("What is put into ~/.bashrc, or run by it:", "adaptertool completion bash"),),
}  # fmt: skip


def epilog_of(command: str) -> str | None:
    """The examples as click shows them: lines that are kept as they are. None where there are none."""
    if command not in EXAMPLES:
        return None
    lines = [f"  {said}\n    $ {typed}" for said, typed in EXAMPLES[command]]
    return "\b\nExamples:\n" + "\n".join(lines)
