"""Blockwise FP8 as Triton kernels for Hopper: quantisation alone and fused, and products of quantised matrices."""
