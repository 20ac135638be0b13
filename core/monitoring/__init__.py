"""Watching: input drift, the quality of predictions once labels are known, and when to train again."""
