-- Databases and their owners, run once by the administrator of the server:
--   STUDIES_DB_PASSWORD=... MLFLOW_DB_PASSWORD=... psql -v ON_ERROR_STOP=1 -f databases.sql postgres
-- The passwords come from the environment, so they stand in no command line.
\getenv studies_password STUDIES_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
-- records of the studies; what `--storage postgresql://studies@HOST/studies` is
CREATE ROLE studies LOGIN PASSWORD :'studies_password';
CREATE DATABASE studies OWNER studies;
-- runs and registry, and MLflow's users
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
-- a driver's password opens the studies and nothing else
REVOKE CONNECT ON DATABASE studies, mlflow, mlflow_auth, postgres FROM PUBLIC;
