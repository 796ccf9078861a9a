"""Triton kernels that several components share, and what all kernels stand on: launches, tables, the interpreter."""
