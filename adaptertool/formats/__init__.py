"""Names on disk <-> (module, role). One file per format; PEFT is the first."""
