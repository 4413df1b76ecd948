"""The revisions of each schema, oldest first: forward only, expand and contract. schema.py runs them."""
