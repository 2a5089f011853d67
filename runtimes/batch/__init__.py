"""Many pictures: jobs, journal, memory gate, pipeline, watch, Ray Data."""
