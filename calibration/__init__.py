"""Where activation ranges come from: image sources and the coverage of degradations and experts."""
