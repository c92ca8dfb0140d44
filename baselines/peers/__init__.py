"""Other libraries' methods as rows of the same board: one file per library, each a thin adapter.

They need the extra ``peers``. What each library computes, and how it differs from the methods here: docs/agreement.md.
"""
