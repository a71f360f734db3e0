"""Spans of OpenTelemetry for migrations; its API is the extra `otel`."""
