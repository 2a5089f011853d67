"""Operators that few runtimes have, as those that all of them have."""
