"""Celery's settings, each with its reason. A test holds every name against Celery's own list.

All state is in Postgres and the broker only wakes workers, so no setting here is needed for a migration to be right.
They make migrations quick, and keep Celery from losing or duplicating messages.
"""

from graph_migrator.core.settings import settings as _settings
from graph_migrator.tasks.patience import PROGRAM as _PROGRAM

_s = _settings()

# The services, and the one queue that all our tasks travel in: a worker can serve it alone, or with others.
broker_url = _s.broker_url
result_backend = _s.result_backend
task_default_queue = _s.queue
task_routes = {"tasks.*": {"queue": _s.queue}}

# JSON only: a message can never carry code.
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]
if _s.signing_key:
    # Signed JSON, and nothing else; results stay plain (tasks/celery.py).
    task_serializer = event_serializer = "auth"
    accept_content = ["auth"]
    result_accept_content = ["json"]
    security_key = _s.signing_key
    security_certificate = _s.signing_certificate
    security_cert_store = _s.signing_trusted
timezone = "UTC"

# A message is acknowledged when its task has ended: a worker that dies leaves it to another.
task_acks_late = True
# The message of a killed pool process is requeued at once; without this it fails without a retry. A hop that
# kills its process every time is bounded by the lost attempts that Postgres counts.
task_reject_on_worker_lost = True
# Celery's own bound would wait for three minutes before each retry.
task_retry_on_worker_lost = False
# One message in hand per process: hops are long, and a hoarded message waits behind one.
worker_prefetch_multiplier = 1
# A message that comes again after its task has succeeded is dropped before it is run.
worker_deduplicate_successful_tasks = True

# A hop in progress may outlast any blip of the broker; Celery must not kill it for that.
worker_cancel_long_running_tasks_on_connection_loss = False
broker_connection_retry_on_startup = True
# RabbitMQ closes the channel of a worker that has not acknowledged a message for its consumer_timeout (30 min). The
# hop goes on, and its message, which comes again, is dropped as a duplicate; but the worker must open another channel.
broker_channel_error_retry = True
# No limit: a worker that no longer tries to reach its broker does nothing at all, not even recovery.
broker_connection_max_retries = None
# Redis redelivers what is unacknowledged for so long. Recovery is far quicker, so this only has to be long:
# shorter than a hop, and the hop would be delivered while it runs.
broker_transport_options = {"visibility_timeout": 3600, "socket_keepalive": True}

# The next hop is published by the process that ran the last one. Without patience, a broker that is away for
# a second turns a hop that is done into a failure. A worker waits far longer (tasks/patience.py, tasks/celery.py).
task_publish_retry = True
task_publish_retry_policy = _PROGRAM
result_backend_always_retry = True
result_backend_max_retries = _PROGRAM["max_retries"]
result_backend_transport_options = {"retry_policy": _PROGRAM}
# Results are for callers that wait. The truth stays in Postgres for good.
result_expires = 86_400

# STARTED would overwrite FAILURE when a stale message bears a settled call's id; only SUCCESS is sticky.
task_track_started = False
# Name, arguments and worker with each result, for Flower and for whoever looks into the backend.
result_extended = True

# On SIGTERM a worker finishes its hops; with REMAP_SIGTERM=SIGQUIT it requeues what is not done by then.
worker_soft_shutdown_timeout = 30.0
worker_enable_soft_shutdown_on_idle = True
# A hop's own `timeout=` is kept by Postgres and by the executor; a hard limit would kill its process.
task_time_limit = None

# Events are what Flower shows. They cost a quarter of a small migration's CPU, so they flow while somebody looks:
# Flower switches them on in every worker as it starts, and every five seconds in new ones; -E has them from the start.
worker_send_task_events = False
task_send_sent_event = False
# Celery's own logging set-up replaces the root logger's handlers; keep what the embedding program set up.
worker_hijack_root_logger = True
