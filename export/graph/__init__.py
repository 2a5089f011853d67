"""What every pass needs of a graph: index, editing, probes, sessions, multiply-accumulate counts."""
