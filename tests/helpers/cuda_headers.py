"""Parses the prototypes of cuda_runtime_api.h, to compare the ctypes signatures with them."""

from __future__ import annotations

import re
from ctypes import POINTER, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

from edgedistill.agent import cuda

CTYPES = {"int": c_int, "size_t": c_size_t, "unsigned int": c_uint, "unsigned long long": c_ulonglong, "float": c_float}


def differences(header: str) -> dict[str, str]:
    """Function -> how its prototype differs from cuda.SIGNATURES, for the functions that differ."""
    differences_by_symbol: dict[str, str] = {}
    for symbol, arguments in cuda.SIGNATURES.items():
        prototypes = re.findall(rf"cudaError_t CUDARTAPI {symbol}\(([^;]*?)\);", header)
        declared = [[ctype(parameter) for parameter in split(prototype)] for prototype in prototypes]
        if arguments not in declared:
            differences_by_symbol[symbol] = f"{prototypes}, not {arguments}"
    for symbol in cuda.TEXTS:
        if not re.search(rf"const char\s*\*\s*CUDARTAPI {symbol}\(cudaError_t error\);", header):
            differences_by_symbol[symbol] = "another prototype"
    return differences_by_symbol


def split(prototype: str) -> list[str]:
    """The types of the parameters, without names and defaults."""
    parts = [re.sub(r"\s*__dv\([^)]*\)", "", part).strip() for part in prototype.split(",")]
    return [re.sub(r"\w+$", "", part).strip() for part in parts if part != "void"]


def ctype(text: str) -> Any:
    """The ctypes type of a C type: handles and untyped pointers are void *, enums are int."""
    stars = text.count("*")
    base = re.sub(r"\bconst\b|\*", "", text).strip()
    if base.startswith("enum "):
        base = "int"
    if base in ("void", "struct cudaDeviceProp"):
        base, stars = "void", stars - 1
    plain = c_void_p if base == "void" or re.fullmatch(r"cuda\w+_t", base) else CTYPES[base]
    return POINTER(plain) if stars else plain
