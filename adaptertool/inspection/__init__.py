"""What an adapter or a checkpoint is, described without running anything."""
