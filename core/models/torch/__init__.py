"""The flavour torch: neural networks on tables."""
