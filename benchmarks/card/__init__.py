"""Parts of ``gpu.py``: a module per section, which yields the rows of its table."""
