"""Fixtures for what only one store does."""

import secrets

import pytest

from tests.postgres import PostgresDatabase
from worker.store.postgres.address import Address


@pytest.fixture
def address(shared_database: PostgresDatabase) -> Address:
    """Return where a fresh database may be made in PostgreSQL."""
    return Address(shared_database.url, schema=f"test_{secrets.token_hex(4)}")
