"""Who was shown a comparison, and who skipped one, is found by time: gateways tell each other so.

Expand: two indexes, which the release before does not mind.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_index("comparisons_by_time", "comparisons", ["created_at"], if_not_exists=True)
    is_skip = sa.text("preferred = 'skip'")
    op.create_index(
        "choices_skipped", "choices", ["chosen_at"], sqlite_where=is_skip, postgresql_where=is_skip, if_not_exists=True
    )
