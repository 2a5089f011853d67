"""The arithmetic of fewer bits: ranges, rounding, compensation, float16."""
