"""From a module to a torch program and an ONNX file: symbolic sizes, graph forms, the writer."""
