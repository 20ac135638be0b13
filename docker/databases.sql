-- Postgres runs this once, when its folder is empty. POSTGRES_DB makes the database of Airflow.
CREATE DATABASE mlflow;
CREATE DATABASE dagster;
