#!/usr/bin/env python3
"""Fresh secrets for the services, a line NAME=VALUE each: `(umask 077; python3 make_secrets.py > .env)`.

Compose and systemd read the file as it is; Kubernetes: `kubectl create secret generic sctune-services
--from-env-file=.env`. Make it once and keep it with the backups: the servers keep what they were first started with.
"""

from __future__ import annotations

import secrets

NAMES = (
    "POSTGRES_PASSWORD",  # the administrator of the databases: backup only
    "STUDIES_DB_PASSWORD",  # what drivers are given
    "MLFLOW_DB_PASSWORD",
    "MLFLOW_AUTH_ADMIN_PASSWORD",  # MLflow's user `admin`, on the first start
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
)

if __name__ == "__main__":
    for name in NAMES:
        # letters and digits alone need no quotes anywhere, and no codes in a URL
        print(f"{name}={secrets.token_hex(16)}")
