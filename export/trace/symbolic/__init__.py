"""Symbolic sizes outside of tensors while a model is traced.

Belongs here: numbers of Python, arrays of NumPy and tensors of sizes that stay symbolic. Not here: functions of torch
(``trace.substitutes``), and sizes as a rule for a file (``trace.sizes``).
"""
