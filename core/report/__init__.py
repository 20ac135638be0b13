"""Pages that people read: drift."""
