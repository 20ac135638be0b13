"""Jobs on a Ray cluster: one elsewhere, or one of this machine."""
