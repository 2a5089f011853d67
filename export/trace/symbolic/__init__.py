"""What Python, NumPy and tensors hold of a symbolic size while a model is traced: numbers, arrays, sizes in tensors.

Not here: functions of torch (``trace.substitutes``), and sizes as a rule for a file (``trace.sizes``).
"""
