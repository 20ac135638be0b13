"""Serving: the endpoint that follows the release log, what it captures, and scoring of files."""
