#!/bin/sh
# A merge on a Slurm cluster whose nodes share a file system:
#
#     PARTS=16 sh examples/slurm.sh BASE ADAPTER -o OUT
#
# PARTS: one to four for each node. `adaptertool merge ... --dry-run --rate 1GB/s --nodes 16` estimates what it takes,
# and its line `memory` what to ask for with --mem. SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_TIMELIMIT are heeded by
# sbatch itself. The same command goes on after a failure: what is finished is not made again.
set -eu

PARTS=${PARTS:-16}           # also the number of nodes that may work at once
CPUS=${CPUS:-8}              # of each part; more than 8 gain little
MEMORY=${MEMORY:-2G}         # of each part
PLAN=${PLAN:-plan.json}      # where all nodes see it
PLAN=$(realpath -m "$PLAN")

[ -e "$PLAN" ] || adaptertool plan merge "$@" --plan "$PLAN"

# One shard after the other, and a part that was killed with its node starts anew (--requeue)
job=$(sbatch --parsable --job-name merge --array="0-$((PARTS - 1))" --cpus-per-task="$CPUS" --mem="$MEMORY" --requeue \
    --wrap "adaptertool run '$PLAN' --part \$SLURM_ARRAY_TASK_ID/$PARTS --threads $CPUS")

# afterany, and not afterok: `finish` knows itself whether all is there, and says what is missing
sbatch --parsable --job-name finish --dependency="afterany:${job%%;*}" --cpus-per-task=1 --mem="$MEMORY" \
    --wrap "adaptertool finish '$PLAN'"
