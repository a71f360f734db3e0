"""The foreign project's own settings, which differ from ours wherever it matters."""

import os

broker_url = os.environ["CELERY_BROKER_URL"]
result_backend = os.environ["CELERY_RESULT_BACKEND"]
task_default_queue = "shop"
task_acks_late = False
accept_content = ["json", "yaml"]
