"""The tables of the registry, as the newest migration leaves them. Numbers, digests and names: no key, no response.

A key is spent when `keys.spent_at` is set: at once with the first exposure, whoever saw it. `exposures` has one row for
each time that a key was shown; `id` rises in the order of showing. `attempt_id` is NULL for keys marked by hand, and
`exposures.suspect` is NULL where everyone may have seen the key. Times are UTC, ISO 8601.

The tables `permission_...` are those of `permissions.PermissionStore`, `usage` is that of `usage.UsageLog`; their times
are seconds since 1970, and `usage.hour` is when the hour begins.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

VERSION_TABLE = "registry_version"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

licensees = Table(
    "licensees",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("note", Text, nullable=False),
    Column("added_at", String(32), nullable=False),
)

sets = Table(
    "sets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("num_fingerprints", Integer, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("base_model_digest", String(64), nullable=False),
    Column("tokenizer_digest", String(64), nullable=False),
    Column("secret_commitment", String(64), nullable=False),
    Column("order_digest", String(64), nullable=False),
    Column("licensee_id", Integer, ForeignKey("licensees.id"), index=True),
    Column("added_at", String(32), nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("set_id", Integer, ForeignKey("sets.id"), nullable=False, index=True),
    Column("suspect", Text, nullable=False),
    Column("started_at", String(32), nullable=False),
    Column("ended_at", String(32)),
    Column("verdict", String(32)),
    Column("report_digest", String(64)),
    Column("report", Text),
)

keys = Table(
    "keys",
    metadata,
    Column("set_id", Integer, ForeignKey("sets.id"), primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("place", Integer, nullable=False),
    Column("attempt_id", String(32), ForeignKey("attempts.id")),
    Column("spent_at", String(32)),
    Column("suspect", Text),
    # The next keys are the first of this index, however many are spent.
    Index(
        "ix_keys_fresh",
        "set_id",
        "place",
        sqlite_where=text("spent_at IS NULL"),
        postgresql_where=text("spent_at IS NULL"),
    ),
    sqlite_with_rowid=False,
)

exposures = Table(
    "exposures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("set_id", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("suspect", Text),
    Column("attempt_id", String(32), ForeignKey("attempts.id")),
    Column("at", String(32), nullable=False),
    ForeignKeyConstraint(["set_id", "number"], ["keys.set_id", "keys.number"]),
    UniqueConstraint("attempt_id", "number"),
    Index(None, "set_id", "number", "suspect"),
)

models = Table(
    "models",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("set_id", Integer, ForeignKey("sets.id"), primary_key=True, autoincrement=False),
    Column("path", Text, nullable=False),
    Column("added_at", String(32), nullable=False),
)

permission_nonces = Table(
    "permission_nonces",
    metadata,
    Column("issuer", String(200), primary_key=True),
    Column("nonce", String(64), primary_key=True),
    Column("body", String(64)),
    Column("spent_at", Double, nullable=False),
    Column("finished", Boolean, nullable=False),
    Column("answer", LargeBinary),
    Column("forget_at", BigInteger, nullable=False, index=True),
    Index(
        "ix_permission_nonces_answered",
        "spent_at",
        sqlite_where=text("answer IS NOT NULL"),
        postgresql_where=text("answer IS NOT NULL"),
    ),
)

permission_quotas = Table(
    "permission_quotas",
    metadata,
    Column("issuer", String(200), primary_key=True),
    Column("nonce", String(64), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("forget_at", BigInteger, nullable=False, index=True),
)

permission_lists = Table(
    "permission_lists",
    metadata,
    Column("owner", String(16), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
)

permission_state = Table(
    "permission_state",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("began", Double, nullable=False),
    Column("forgotten", Double, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("licensee", String(200), primary_key=True),
    Column("model_digest", String(64), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("generations", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("aborted", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
