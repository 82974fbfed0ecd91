"""Row-level security: what a transaction that is restricted to access groups sees. Others see all rows."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Mapping

import sqlalchemy as sa

GROUPS_SETTING = "ragfm.groups"
"""The setting of a transaction with the groups that its rows are restricted to, as JSON."""
_READ_ALL = "pg_read_all_data"  # predefined role, to which policies apply
_GROUPS = f"(SELECT nullif(current_setting('{GROUPS_SETTING}', true), '')::jsonb)"
_UNRESTRICTED = f"(SELECT nullif(current_setting('{GROUPS_SETTING}', true), '')) IS NULL"  # evaluated once per query
# A subquery sees only what the policies of its own table allow.
POLICIES: Mapping[str, str] = {
    "documents": "NOT restricted OR EXISTS (SELECT FROM {schema}.groups g WHERE g.document_id = documents.id)",
    "groups": f"{_GROUPS} ? name",
    "tags": "EXISTS (SELECT FROM {schema}.documents d WHERE d.id = document_id)",
    "chunks": "EXISTS (SELECT FROM {schema}.documents d WHERE d.id = document_id)",
    "vectors": "EXISTS (SELECT FROM {schema}.chunks c WHERE c.text_hash = vectors.text_hash)",
    "images": "EXISTS (SELECT FROM {schema}.chunks c WHERE c.image = images.hash)",
    "failures": "false",
}
"""What a restricted transaction sees of each table of the catalog."""
_SERVER_POLICIES: Mapping[str, str] = {
    "document_checksums": "false",
    "answer_log": f"groups <@ {_GROUPS}",  # all groups that it was answered for
    "citation_labels": "false",
    "uploads": f"{_GROUPS} ? owner",
    "upload_parts": "EXISTS (SELECT FROM {schema}.uploads u WHERE u.id = upload_id)",
}
_STATE = sa.text(
    "SELECT current_user AS name, relrowsecurity AS has_policies, row_security_active(oid) AS apply, "
    "pg_has_role(CAST(:role AS name), 'MEMBER') AS may_switch FROM pg_class WHERE oid = CAST(:table AS regclass)"
)
_WITHOUT_SECURITY = sa.text(
    "SELECT relname, pg_has_role(relowner, 'USAGE') AS own FROM pg_class "
    "JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = :schema "
    "AND relkind = 'r' AND NOT (relrowsecurity AND relforcerowsecurity AND EXISTS "
    "(SELECT FROM pg_policy WHERE polrelid = pg_class.oid AND polname = 'access' "
    "AND position(:setting IN pg_get_expr(polqual, polrelid)) > 0)) ORDER BY relname"
).bindparams(setting=GROUPS_SETTING)
_log = logging.getLogger(__name__)


class RowSecurity:
    """Row-level security of the tables of a schema."""

    def __init__(self, schema: str, location: str) -> None:
        self._schema, self._location = schema, location
        self._role: dict[str, str] | None = None  # the setting, besides the groups, that makes policies apply

    @property
    def is_known(self) -> bool:
        """Whether `restrict` was called, which `restriction` needs."""
        return self._role is not None

    def restrict(self, connection: sa.Connection, groups: frozenset[str]) -> None:
        """Let the policies hide the rows of documents that none of the groups may see, until the transaction ends.

        Policies do not apply to superusers and to roles with BYPASSRLS: those take the role `pg_read_all_data`.
        """
        if self._role is None:
            row = connection.execute(_STATE, {"table": f'"{self._schema}".documents', "role": _READ_ALL}).one()
            self._role = {"role": _READ_ALL} if row.has_policies and not row.apply and row.may_switch else {}
            if not (row.apply or self._role):
                why = f"the role {row.name!r} bypasses them" if row.has_policies else "they are switched off"
                _log.warning("%s: row-level policies do not apply, %s (docs/scale-out.md).", self._location, why)
        # Not built by SQLAlchemy, which takes longer than the call.
        connection.exec_driver_sql(*self.restriction(groups))

    def restriction(self, groups: frozenset[str]) -> tuple[str, tuple[str, ...]]:
        """The statement that restricts a transaction to groups, and its parameters."""
        settings = {GROUPS_SETTING: json.dumps(sorted(groups)), **(self._role or {})}
        calls = ", ".join(["set_config(%s, %s, true)"] * len(settings))
        return f"SELECT {calls}", tuple(itertools.chain.from_iterable(settings.items()))

    def unprotected_tables(self, connection: sa.Connection, *, own: bool = False) -> list[str]:
        """The tables that should have a policy and have none. With `own`, only those that this role may change."""
        rows = connection.execute(_WITHOUT_SECURITY, {"schema": self._schema}).all()
        return [row.relname for row in rows if _policy(row.relname) is not None and (row.own or not own)]

    def create_policies(self, connection: sa.Connection, tables: Iterable[str]) -> None:
        """Let restricted transactions see only some rows of tables."""
        for name in tables:
            table = f'"{self._schema}".{name}'
            visible = str(_policy(name)).format(schema=f'"{self._schema}"')
            for statement in (
                f"DROP POLICY IF EXISTS access ON {table}",
                f"CREATE POLICY access ON {table} USING ({_UNRESTRICTED} OR {visible})",
                f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
                f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",  # also for the role that owns the table
            ):
                connection.exec_driver_sql(statement)


def _policy(table: str) -> str | None:
    """The policy that a table should have."""
    if table.startswith("pgvector_"):
        # With OFFSET, the subquery is never planned as a scan of all chunks: a search visits few rows.
        return f"EXISTS (SELECT FROM {{schema}}.chunks c WHERE c.text_hash = {table}.text_hash OFFSET 0)"
    return {**POLICIES, **_SERVER_POLICIES}.get(table)
