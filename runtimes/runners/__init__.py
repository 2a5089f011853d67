"""One file per runtime behind one protocol, and what reads a model file's own description."""
