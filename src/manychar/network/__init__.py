"""Sockets, endpoints, name resolution, keys and authentication."""
