"""Pixels of files in and out, and what else a file says."""
