"""INT8 and FP8: observing activations, choosing ranges, and writing Q/DQ into the graph."""
