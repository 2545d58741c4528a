"""Reports as text and JSON: the one place where anything is formatted."""
