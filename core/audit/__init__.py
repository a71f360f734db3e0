"""Keeping the audit trail: moving its old part to files."""
