"""From a plan to a published OUT: checks, staging, manifest, provenance, and the report of the run."""
