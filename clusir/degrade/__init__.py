"""Synthetic degradations, numpy only: one file a place where a picture is damaged, and the recipe that chains them."""
