"""The release log, and its projection in MLflow."""
