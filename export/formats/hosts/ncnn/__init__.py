"""ncnn (PyPI ``ncnn``): ``model.param`` and ``model.bin`` for phones, written layer by layer from the ONNX graph.

Belongs here: ncnn's layers and its two files. Not here: changes of the ONNX graph (``export.passes``).
"""
