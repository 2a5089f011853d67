"""Linear recurrences in ONNX: how exact they are as they grow longer, and which form is fastest."""
