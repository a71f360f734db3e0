"""Optional message signing: with a key and certificates, a worker takes signed messages and no others.

Celery's `auth` serializer signs the JSON; it needs the extra `signing`. The switch is three settings, the same
for everybody who sends (see SECURITY.md); celeryconfig.py turns the serializers over.
"""

from __future__ import annotations

from typing import Any

from graph_migrator.core.settings import settings
from graph_migrator.tasks.celery import app


@app.on_after_configure.connect
def _sign(sender: Any, **_: object) -> None:
    # JSON stays known to kombu for the results; what a worker takes is accept_content's business.
    if settings().signing_key:
        sender.setup_security(allowed_serializers=["json"])
