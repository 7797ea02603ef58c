"""One experiment runs a chapter."""
