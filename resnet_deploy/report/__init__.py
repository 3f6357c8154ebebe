"""Benchmark records for reading: a table for the terminal, and one HTML page that stands alone."""
