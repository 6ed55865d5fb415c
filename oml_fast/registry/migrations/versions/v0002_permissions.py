"""Nonces and quotas of permissions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "permission_nonces",
        sa.Column("issuer", sa.String(200), primary_key=True),
        sa.Column("nonce", sa.String(64), primary_key=True),
        sa.Column("body", sa.String(64)),
        sa.Column("spent_at", sa.Double, nullable=False),
        sa.Column("finished", sa.Boolean, nullable=False),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("forget_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_permission_nonces_forget_at", "permission_nonces", ["forget_at"])
    has_answer = sa.text("answer IS NOT NULL")
    op.create_index(
        "ix_permission_nonces_answered",
        "permission_nonces",
        ["spent_at"],
        sqlite_where=has_answer,
        postgresql_where=has_answer,
    )
    op.create_table(
        "permission_quotas",
        sa.Column("issuer", sa.String(200), primary_key=True),
        sa.Column("nonce", sa.String(64), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("forget_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_permission_quotas_forget_at", "permission_quotas", ["forget_at"])
    op.create_table(
        "permission_lists",
        sa.Column("owner", sa.String(16), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
    )
    op.create_table(
        "permission_state",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("began", sa.Double, nullable=False),
        sa.Column("forgotten", sa.Double, nullable=False),
    )
