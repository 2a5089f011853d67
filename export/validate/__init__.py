"""Is it right? Comparison with PyTorch, tolerances, bisection."""
