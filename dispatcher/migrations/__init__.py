"""Alembic migrations of the tables in dispatcher.models."""
