"""From photos to a checkpoint: config, data, losses, loop and what one run keeps. Imports no exporter."""
