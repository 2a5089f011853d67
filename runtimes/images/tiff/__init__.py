"""TIFF, read and written through tifffile: pages, segments, sample layouts.

Belongs here: what only TIFF knows. Not here: tags that several formats share (``images.metadata``).
"""
