"""Is a checkpoint what it should be? Judged tensor by tensor, whatever tool made it."""
