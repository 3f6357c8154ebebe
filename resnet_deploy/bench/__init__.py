"""Measuring engines: timing in turns, answers on a data set, records, statistics and comparisons."""
