"""The drop-in code location: every loop in `loops/` as Dagster assets."""
