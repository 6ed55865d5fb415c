"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "licensees",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("added_at", sa.String(32), nullable=False),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "sets",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("num_fingerprints", sa.Integer, nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("base_model_digest", sa.String(64), nullable=False),
        sa.Column("tokenizer_digest", sa.String(64), nullable=False),
        sa.Column("secret_commitment", sa.String(64), nullable=False),
        sa.Column("order_digest", sa.String(64), nullable=False),
        sa.Column("licensee_id", sa.Integer, sa.ForeignKey("licensees.id")),
        sa.Column("added_at", sa.String(32), nullable=False),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("ix_sets_licensee_id", "sets", ["licensee_id"])
    _attempts_and_keys()
    op.create_table(
        "models",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("set_id", sa.Integer, sa.ForeignKey("sets.id"), primary_key=True, autoincrement=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("added_at", sa.String(32), nullable=False),
    )


def _attempts_and_keys() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("set_id", sa.Integer, sa.ForeignKey("sets.id"), nullable=False),
        sa.Column("suspect", sa.Text, nullable=False),
        sa.Column("started_at", sa.String(32), nullable=False),
        sa.Column("ended_at", sa.String(32)),
        sa.Column("verdict", sa.String(32)),
        sa.Column("report_digest", sa.String(64)),
        sa.Column("report", sa.Text),
    )
    op.create_index("ix_attempts_set_id", "attempts", ["set_id"])
    op.create_table(
        "keys",
        sa.Column("set_id", sa.Integer, sa.ForeignKey("sets.id"), primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("attempt_id", sa.String(32), sa.ForeignKey("attempts.id")),
        sa.Column("spent_at", sa.String(32)),
        sa.Column("suspect", sa.Text),
        sqlite_with_rowid=False,
    )
    fresh = sa.text("spent_at IS NULL")
    op.create_index("ix_keys_fresh", "keys", ["set_id", "place"], sqlite_where=fresh, postgresql_where=fresh)
    op.create_table(
        "exposures",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("set_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("suspect", sa.Text),
        sa.Column("attempt_id", sa.String(32), sa.ForeignKey("attempts.id")),
        sa.Column("at", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(["set_id", "number"], ["keys.set_id", "keys.number"]),
        sa.UniqueConstraint("attempt_id", "number"),
    )
    op.create_index("ix_exposures_set_id_number_suspect", "exposures", ["set_id", "number", "suspect"])
