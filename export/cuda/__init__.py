"""The CUDA matrix: what is measured on a card, in which order, and its report."""
