"""FFTs and complex numbers become real products."""
