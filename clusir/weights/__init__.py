"""The shipped model: weights, the ONNX files exported from them, model card and terms. Data only, no code."""
