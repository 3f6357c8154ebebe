"""INT8: observing activations, choosing ranges, and writing Q/DQ into the graph."""
