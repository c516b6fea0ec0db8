"""Rules of other systems, one file each, to be compared with on the same tables, history and drift."""
