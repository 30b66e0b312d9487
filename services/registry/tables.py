"""The tables. Each resource is a row: what is looked up by stands in columns, the rest in JSON."""

from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, MetaData, String, Table, Text

METADATA = MetaData()
_Revision = BigInteger().with_variant(Integer, "sqlite")

REGISTRY = Table(
    "registry",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
    Column("compacted", BigInteger, nullable=False),
    Column("commit_time", DateTime(timezone=True), nullable=False),
)
"""One row. Whoever writes holds it locked, so that revisions are given in the order of commits."""
MODELS = Table(
    "models",
    METADATA,
    Column("model", String(128), primary_key=True),
    Column("task", String(32), nullable=False),
    Column("latest_version", Integer, nullable=False),
    Column("body", Text, nullable=False),
)
VERSIONS = Table(
    "versions",
    METADATA,
    Column("model", String(128), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("body", Text, nullable=False),
)
ALIASES = Table(
    "aliases",
    METADATA,
    Column("model", String(128), primary_key=True),
    Column("alias", String(128), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("body", Text, nullable=False),
)
POLICIES = Table(
    "policies",
    METADATA,
    Column("model", String(128), primary_key=True),
    Column("body", Text, nullable=False),
)
ARTIFACTS = Table(
    "artifacts",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
)
"""Which versions hold which bytes: what no row names may be collected."""
PROFILES = Table(
    "profiles",
    METADATA,
    Column("model", String(128), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("fingerprint", String(512), primary_key=True),
    Column("measure_time", DateTime(timezone=True), nullable=False),
    Column("body", Text, nullable=False),
)
OPERATIONS = Table(
    "operations",
    METADATA,
    Column("name", String(200), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("subject", String(300), nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("lease_time", DateTime(timezone=True)),
    Column("body", Text, nullable=False),
    Index("operations_by_state", "state", "kind", "create_time"),
    Index("operations_by_subject", "subject", "state"),
)
CHANGES = Table(
    "changes",
    METADATA,
    Column("revision", _Revision, primary_key=True, autoincrement=True),
    Column("commit_time", DateTime(timezone=True), nullable=False),
    Column("actor", String(128), nullable=False),
    Column("model", String(128), nullable=False),
    Column("name", String(300), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("resource", String(16), nullable=False),
    Column("before", Text),
    Column("after", Text),
    Column("request_id", String(128), nullable=False),
    Index("changes_by_model", "model", "revision"),
    Index("changes_by_name", "name", "revision"),
    sqlite_autoincrement=True,
)
REQUESTS = Table(
    "requests",
    METADATA,
    Column("identity", String(128), primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("method", String(128), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("resource", String(300), nullable=False),
    Column("commit_time", DateTime(timezone=True), nullable=False),
    Column("response", Text),
    Index("requests_by_time", "commit_time"),
)
