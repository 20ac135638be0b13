"""The flavour xgboost: gradient-boosted trees."""
