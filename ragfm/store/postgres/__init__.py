"""A collection on PostgreSQL: one schema of a database, and a local folder for HEAD and views.

Everything here works through a connection pooler in transaction mode, such as PgBouncer: no session settings, locks or
prepared statements. Readers are `REPEATABLE READ READ ONLY` transactions. See docs/decisions/041-postgresql.md.

address            the address of a collection
lease              the write lock, and other jobs of one process at a time
policies           row-level security: what a transaction that is restricted to groups sees
schema             creates the tables and checks their server; checksums of rows
server_errors      what an error of the server means
postgres_database  `PostgresDatabase`
"""

from ragfm.store.postgres.postgres_database import PostgresDatabase

__all__ = ["PostgresDatabase"]
