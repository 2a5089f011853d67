"""What a file says besides its pixels (EXIF, XMP, profiles, comments), and what of it lives on in another format."""
