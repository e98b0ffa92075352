"""Parts of the metrics benchmark."""
