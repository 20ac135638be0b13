"""Hooks: how tasks reach the store and MLflow."""
