"""The HTML page and the comparison pictures of a run."""
