"""Alembic's entry point. Runs the revisions on the server's connection."""

from alembic import context

from orchestrator.adapters.database.tables import metadata

connection = context.config.attributes["connection"]
if connection.dialect.name == "sqlite":
    connection = connection.execution_options(isolation_level="AUTOCOMMIT")
    connection.exec_driver_sql("BEGIN EXCLUSIVE")
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=connection.dialect.name != "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
if connection.dialect.name == "sqlite":
    connection.exec_driver_sql("COMMIT")
else:
    connection.commit()
