"""A sorted model and its runs in tables, pictures and one page."""
