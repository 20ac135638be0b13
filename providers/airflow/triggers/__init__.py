"""Triggers: how tasks wait without a worker."""
