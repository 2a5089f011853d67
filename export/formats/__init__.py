"""What goes out beside ONNX: bundle, ``.ort``, ExecuTorch, static FFTs."""
