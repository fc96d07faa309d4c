"""The error classes."""

import pickle
from pathlib import Path

import pytest

import mtlkit.data
from mtlkit import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_each_kind_is_a_data_error_and_reaches_another_process(name):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.DataError)
    assert issubclass(kind, ValueError)
    error = pickle.loads(pickle.dumps(kind("busi: there is no such folder")))
    assert (type(error), str(error)) == (kind, "busi: there is no such folder")


def test_the_public_name():
    assert mtlkit.data.DataError is errors.DataError


def test_what_can_be_resumed_is_remembered():
    assert not errors.ExistsError("x").resumable
    assert pickle.loads(pickle.dumps(errors.ExistsError("x", resumable=True))).resumable


def test_the_path_is_kept_apart_from_the_words():
    error = pickle.loads(pickle.dumps(errors.MismatchError("has another size", path="a.png")))
    assert (str(error), error.path, error.text) == ("a.png: has another size", Path("a.png"), "has another size")
