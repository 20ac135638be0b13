"""What Airflow reads about this provider. It imports nothing."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The provider's description, as Airflow's schema for it demands."""
    return {
        "package-name": "treadle",
        "name": "Treadle",
        "description": "Keeps machine-learning models alive: every loop file becomes DAGs that prepare, train, judge,"
        " release, deploy, watch and retrain.",
        "integrations": [
            {"integration-name": "treadle", "tags": ["software"]},
        ],
        "operators": [
            {
                "integration-name": "treadle",
                "python-modules": [
                    "treadle_airflow.operators.stages",
                    "treadle_airflow.operators.acts",
                    "treadle_airflow.operators.approval",
                ],
            }
        ],
        "sensors": [{"integration-name": "treadle", "python-modules": ["treadle_airflow.sensors.treadle"]}],
        "hooks": [{"integration-name": "treadle", "python-modules": ["treadle_airflow.hooks.treadle"]}],
        "triggers": [
            {
                "integration-name": "treadle",
                "python-modules": ["treadle_airflow.triggers.job", "treadle_airflow.triggers.watch"],
            }
        ],
        "connection-types": [
            {
                "connection-type": "treadle",
                "hook-class-name": "treadle_airflow.hooks.treadle.TreadleHook",
                "hook-name": "treadle",
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "schema", "port"],
                    "relabeling": {"login": "MLflow user", "password": "MLflow password"},
                },
                "conn-fields": {
                    "store": _field("Store", "A folder, or a URI such as s3://bucket/treadle"),
                    "mlflow": _field("MLflow address", "Such as https://mlflow.example.com"),
                    "mlflow_ui": _field(
                        "MLflow pages", "For links, where they are elsewhere than the address"
                    ),
                    "endpoint": _field("Endpoint", "The address of treadle serve, for links"),
                    "environment": _field(
                        "Environment",
                        "A JSON object of variables that tasks have, such as AWS_ACCESS_KEY_ID",
                        format="password",
                    ),
                },
            }
        ],
        "extra-links": [
            "treadle_airflow.links.MlflowLink",
            "treadle_airflow.links.EndpointLink",
            "treadle_airflow.links.ReportLink",
        ],
    }


def _field(label: str, description: str, **schema: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"], **schema}}
