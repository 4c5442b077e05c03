"""Tables: contracts on pyarrow, the Parquet lake, checks, ingest, panels and datasets.

Everything between raw files and the arrays that features and models read. This tier may
use pandas, pyarrow, polars and numba; ``riskml.scoring`` never imports it.
"""

from riskml.tables.book import read_book, read_books

__all__ = ["read_book", "read_books"]
