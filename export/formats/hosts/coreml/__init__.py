"""Core ML: ``model.mlpackage`` for Apple's systems, by PyPI's coremltools, and a reader that computes it.

Belongs here: programs of Core ML's language MIL. Not here: changes of the ONNX graph (``export.passes``).
"""
