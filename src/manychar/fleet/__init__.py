"""The roles as processes: server, worker, validation, local fleet."""
