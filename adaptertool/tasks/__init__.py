"""One file per command: each opens its inputs, makes a plan, has it run, and returns a report."""
