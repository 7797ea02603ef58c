"""Runs the chapters and builds the site: ``python -m robrep.site`` (what the make targets call)."""
