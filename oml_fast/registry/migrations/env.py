"""Run by alembic, on the connection and in the transaction that `schema.py` hands over: all changes, or none."""

from __future__ import annotations

from alembic import context

from oml_fast.registry.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
