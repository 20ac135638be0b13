"""The rules that `treadle check` knows, by what they look at. A new module of rules is named in `MODULES`."""

from __future__ import annotations

MODULES = (
    "treadle.checks.file_rules",
    "treadle.checks.code_rules",
    "treadle.checks.data_rules",
    "treadle.checks.sql_rules",
    "treadle.checks.feature_rules",
    "treadle.checks.model_rules",
    "treadle.checks.pool_rules",
    "treadle.checks.gate_mistakes",
    "treadle.checks.watch_mistakes",
    "treadle.checks.house_mistakes",
)
