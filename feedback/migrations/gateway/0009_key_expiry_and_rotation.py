"""Keys have a name beside their app, end at a time, and have the secret before for a while.

Expand: the release before makes keys without a name, whose name is their app's; it knows no end and no second secret.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("keys", sa.Column("name", sa.String(length=200), nullable=False, server_default=""))
    for name, kind in (("expires_at", sa.Float()), ("old_digest", sa.String(length=64)), ("old_until", sa.Float())):
        op.add_column("keys", sa.Column(name, kind, nullable=True))
