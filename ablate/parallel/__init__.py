"""Runs on many ranks: the mesh, what is divided over it, and how rows travel between ranks."""
