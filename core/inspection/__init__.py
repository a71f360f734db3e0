"""Reading what Postgres holds: history, diagnosis, health checks and metrics. Nothing here changes a migration."""
