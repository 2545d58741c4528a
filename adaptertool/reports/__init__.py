"""What each command has to say, as frozen data, a file for each JSON schema. `render` makes text or pages of it."""
