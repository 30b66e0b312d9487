"""Traffic policies, operations, latency curves; one row that counts revisions for all writers."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is new; revisions go on where the history of the first schema ends."""
    op.create_table(
        "registry",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("compacted", sa.BigInteger, nullable=False),
        sa.Column("commit_time", sa.DateTime(timezone=True), nullable=False),
    )
    op.execute(
        "INSERT INTO registry (id, revision, compacted, commit_time) "
        "SELECT 1, COALESCE(MAX(revision), 0), 0, "
        "COALESCE(MAX(commit_time), '2000-01-01 00:00:00') FROM changes"
    )
    op.create_table(
        "policies",
        sa.Column("model", sa.String(128), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "profiles",
        sa.Column("model", sa.String(128), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("fingerprint", sa.String(512), primary_key=True),
        sa.Column("measure_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "operations",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(300), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_time", sa.DateTime(timezone=True)),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("operations_by_state", "operations", ["state", "kind", "create_time"])
    op.create_index("operations_by_subject", "operations", ["subject", "state"])
    op.create_table(
        "artifacts",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(128), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    )
    _refer()
    op.add_column("requests", sa.Column("response", sa.Text))
    op.create_index("requests_by_time", "requests", ["commit_time"])
    op.create_index("changes_by_name", "changes", ["name", "revision"])


def _refer() -> None:
    """Which version holds which bytes, read out of the bodies."""
    connection = op.get_bind()
    versions = sa.table(
        "versions", sa.column("model"), sa.column("version"), sa.column("body", sa.Text)
    )
    artifacts = sa.table("artifacts", sa.column("sha256"), sa.column("model"), sa.column("version"))
    for model, version, body in connection.execute(sa.select(versions)).all():
        for digest in {artifact["sha256"] for artifact in json.loads(body)["artifacts"]}:
            row = {"sha256": digest, "model": model, "version": version}
            connection.execute(sa.insert(artifacts).values(**row))
