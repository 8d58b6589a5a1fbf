"""Starting, supervising and ending processes; signals, numerics pinning, logging, errors."""
