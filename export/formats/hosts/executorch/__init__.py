"""ExecuTorch: ``model.pte`` for phones, by PyPI's executorch, of any graph that clusir exports.

Belongs here: the graph as a PyTorch program of plain operators. Not here: the tile and router programs of our own
network (``export.formats.executorch``), and changes of the ONNX graph (``export.passes``).
"""
