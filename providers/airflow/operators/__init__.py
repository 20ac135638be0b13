"""Operators: one for each stage, and one for each act of a person."""
