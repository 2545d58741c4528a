"""What is known of models: names in memory and on disk, traits of families. The tables are derived in tools/."""
