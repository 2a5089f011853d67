"""What a picture file says beside its pixels, and what of it a written file keeps: colour, EXIF, XMP, orientation.

Belongs here: reading and rewriting descriptions. Not here: pixels, and which format a file has (``images``).
"""
