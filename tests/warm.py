"""Imports what every turn of the wheel needs; the server that test processes are forked from loads this once."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import feast
    import great_expectations
    import ibis
    import pandas
    import pyarrow.parquet
    import sklearn.metrics
    import xgboost
    from treadle import runner
    from treadle.registry.mlflow import import_mlflow

    import_mlflow()

__all__ = ["feast", "great_expectations", "ibis", "pandas", "pyarrow", "runner", "sklearn", "xgboost"]
