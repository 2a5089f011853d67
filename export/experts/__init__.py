"""Routed blocks become dense or conditional, and none of their weights may be missing."""
