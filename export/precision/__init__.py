"""Decisions about fewer bits: budget, sensitivity, quality loss, advice."""
