"""Indexes by tenant and owner, for those who see their own sessions alone. No table is touched, no event looked at.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NAMED = sa.text("session_id IS NOT NULL")


def upgrade() -> None:
    columns = ["tenant", "owner", "status", "updated_at", "id"]
    op.create_index("session_by_owner", "session", columns, sqlite_where=NAMED, postgresql_where=NAMED)
    op.create_index("tombstone_by_owner", "tombstone", ["tenant", "owner"])


def downgrade() -> None:
    op.drop_index("tombstone_by_owner", "tombstone")
    op.drop_index("session_by_owner", "session")
