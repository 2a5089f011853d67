"""TIFF: directories by tifffile, samples of any layout."""
