"""The program that makes a library of GCC 13 load with the libstdc++ of GCC 12."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "fit_libstdcxx.py"
# A stand-in for libstdc++ of GCC 13 with the version, and a library that asks for it.
PROVIDER = "void _ZSt21ios_base_library_initv(void) {}\n"
USER = """
#include <unistd.h>
void _ZSt21ios_base_library_initv(void);
int answer(void) { _ZSt21ios_base_library_initv(); return getpid() > 0 ? 42 : 0; }
"""


@pytest.fixture(scope="module")
def fit_libstdcxx() -> Any:
    spec = importlib.util.spec_from_file_location("fit_libstdcxx", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Needs a version of its provider that the provider, made again without it, lacks."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to make a library that lacks a version")
    (tmp_path / "provider.c").write_text(PROVIDER)
    (tmp_path / "user.c").write_text(USER)
    (tmp_path / "versions").write_text("GLIBCXX_3.4.32 { global: _ZSt21*; };\n")
    provider, user = tmp_path / "libprovider.so", tmp_path / "libuser.so"
    script = f"-Wl,--version-script={tmp_path}/versions"
    make = ["gcc", "-shared", "-fPIC"]
    subprocess.run([*make, script, "-o", provider, tmp_path / "provider.c"], check=True)
    link = ["-L", tmp_path, "-lprovider", "-Wl,-rpath,$ORIGIN", "-Wl,-z,now"]
    subprocess.run([*make, "-o", user, tmp_path / "user.c", *link], check=True)
    (tmp_path / "provider.c").write_text("int another;\n")
    (tmp_path / "versions").write_text("GLIBCXX_3.4.30 { global: another; };\n")
    subprocess.run([*make, script, "-o", provider, tmp_path / "provider.c"], check=True)
    return user


def test_a_library_that_did_not_load_loads_and_works(fit_libstdcxx: Any, library: Path) -> None:
    with pytest.raises(OSError, match=r"GLIBCXX_3\.4\.32"):
        ctypes.CDLL(str(library))
    data = bytearray(library.read_bytes())
    assert fit_libstdcxx.fit(data)
    fitted = library.with_name("libfitted.so")
    fitted.write_bytes(data)
    assert ctypes.CDLL(str(fitted)).answer() == 42


def test_a_second_time_there_is_nothing_to_do(fit_libstdcxx: Any, library: Path) -> None:
    data = bytearray(library.read_bytes())
    assert fit_libstdcxx.fit(data)
    once = bytes(data)
    assert not fit_libstdcxx.fit(data)
    assert bytes(data) == once


def test_what_is_no_library_is_refused(fit_libstdcxx: Any) -> None:
    with pytest.raises(fit_libstdcxx.NotFit, match="ELF"):
        fit_libstdcxx.fit(bytearray(b"#!/bin/sh\n"))
