"""A merge on a Dask cluster that is started for it: here on one machine, or by any launcher of Dask.

    python examples/dask_merge.py BASE ADAPTER OUT [WORKERS]

In the place of LocalCluster may stand SLURMCluster or PBSCluster (dask-jobqueue), KubeCluster (dask-kubernetes), or
another. WORKERS: one for each node. A worker makes one shard at a time, with as many threads as it is given below.
"""

import sys

from dask.distributed import Client, LocalCluster

import adaptertool


def main(base: str, adapter: str, out: str, workers: int) -> None:
    # Threads of adaptertool, and not of Dask, work on a shard: so one of Dask's for each worker
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        report = adaptertool.merge(base, [adapter], out, executor=client.get_executor(), threads=2)
    print(f"{report.out}: {report.bytes_written:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]) if len(sys.argv) > 4 else 2)
