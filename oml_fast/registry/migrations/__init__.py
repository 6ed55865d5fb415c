"""How a registry of an older oml_fast becomes one of this. alembic reads the files; `schema.py` runs them."""
