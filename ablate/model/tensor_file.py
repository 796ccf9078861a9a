"""Files of tensors in the format of safetensors, written a tensor at a time and hashed on the way.

The library's own writer wants all tensors on the host at once, and a file that is to be sealed is read once more for
its hash: at 16 GB of states that is 16 GB of memory and a minute. What is written here is the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The format's names, in the order in which the library sorts: tensors of the last come first, so that all are aligned.
NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
ORDER = {dtype: i for i, dtype in enumerate(NAMES)}
ALIGNED = 8  # bytes to a multiple of which the header is filled up


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Write a safetensors file; one tensor at a time is copied to the host. -> its size and hash, as manifests have it.

    Tensors may share memory; each is written whole. ValueError for a dtype that the format does not have here; OSError
    as from any other write.
    """
    if wrong := {t.dtype for t in tensors.values()} - NAMES.keys():
        raise ValueError(
            f"tensors of {min(map(str, wrong))} cannot be written; convert them to one of the usual formats"
        )
    ordered = sorted(tensors.items(), key=lambda item: (-ORDER[item[1].dtype], item[0]))
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for part in _parts(ordered):
            file.write(part)
            digest.update(part)
            size += len(part)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _parts(ordered: Sequence[tuple[str, Tensor]]) -> Iterator[memoryview]:
    """The file from its beginning: the length of the header, the header, and every tensor's bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        flat = tensor.detach().reshape(-1).cpu().contiguous()
        yield memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
