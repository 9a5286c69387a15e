"""A short, repeatable run of the fuzzer over every reader of a file (python -m tests.fuzz_readers runs longer)."""

import os

import pytest
from fuzz_readers import READERS, attempt, fuzz

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", READERS)
def test_a_reader_returns_or_names_the_file(name):
    result = fuzz(name, examples=500)
    assert result["failure"] is None, result
    assert 0 < result["read"] < result["tried"] and result["tried"] > 250


def unnamed(path):
    raise ValueError("bad")


def other_error(path):
    raise KeyError(path)


def out_of_memory(path):
    try:
        raise MemoryError
    except MemoryError:
        raise ValueError(path)


@pytest.mark.parametrize("read", [unnamed, other_error, out_of_memory])
def test_the_fuzzer_sees_what_no_reader_may_do(read, tmp_path):
    with pytest.raises((AssertionError, KeyError)):
        attempt(read, tmp_path / "input")


def test_what_a_reader_may_do(tmp_path):
    assert attempt(os.fspath, tmp_path)
