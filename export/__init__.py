"""torch module to validated artefacts, as a visible list of passes."""
