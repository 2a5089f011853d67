"""One file a pass, and ``order`` that lists them."""
