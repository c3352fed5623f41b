"""Roles: what one replica at a time does for all."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE roles (
          role text PRIMARY KEY,
          replica text NOT NULL,
          held_until timestamptz NOT NULL
        )
        """
    )
