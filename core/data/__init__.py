"""Data: sources, tables, their digests and partitions, quality rules, leakage checks."""
