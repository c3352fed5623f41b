"""Roles: what one replica at a time does for all. Inventories: what replicas tell each other."""

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
    # Lives for the moment between a question and its answer.
    op.execute(
        """
        CREATE UNLOGGED TABLE inventories (
          question text NOT NULL,
          gateway text NOT NULL,
          function_ids text[],
          time timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (question, gateway)
        )
        """
    )
