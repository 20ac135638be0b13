"""Conformance suites that users subclass: a flavour, a store, a check rule."""
