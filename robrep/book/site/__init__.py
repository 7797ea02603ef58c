"""Runs the chapters and builds the site: ``python -m robrep.book.site`` (what the make targets call)."""
