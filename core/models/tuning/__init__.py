"""The search for a training's parameters."""
