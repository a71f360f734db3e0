"""Keeping the audit trail: proving it, moving its old part to files, and comparing the database with the release."""
