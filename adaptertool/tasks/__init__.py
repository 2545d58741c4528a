"""One file per command: merge, wise. Each makes a plan and hands it to `run`."""
