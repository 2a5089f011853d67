"""Array to array around a runner: tiles, routing, canvas, Restorer."""
