"""Where stages run. Today: in the calling process."""
