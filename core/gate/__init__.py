"""Judging a challenger against the champion: losses, metrics, tests by blocks of time, the decision."""
