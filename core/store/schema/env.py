"""Alembic's entry: runs on the connection that `core.store.schema.upgrade` hands over."""

from alembic import context

from graph_migrator.core.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=metadata.schema,
    include_schemas=True,
)
context.run_migrations()
