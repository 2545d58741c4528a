"""Names on disk <-> (module, role). One file or folder per format; PEFT is the first."""
