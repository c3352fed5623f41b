"""Bundles: what runs on a cluster without an image."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Beside `builds`, whose rows are listed and watched whole: a bundle has up to 900 KiB.
    op.execute(
        """
        CREATE TABLE bundles (
            build  text  PRIMARY KEY REFERENCES builds ON DELETE CASCADE,
            bundle bytea NOT NULL,
            lock   text  NOT NULL
        )
        """
    )
