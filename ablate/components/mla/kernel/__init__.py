"""Triton kernels of multi-head latent attention: rotation, assembly of the heads, attention, absorbed decoding."""
