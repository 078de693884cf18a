"""The `device` of the torch tests: cpu, and cuda where torch sees one; ATTN_TEST_DEVICE=cpu|cuda takes that
one alone."""
import os
import pathlib
import sys

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent),
                str(pathlib.Path(__file__).resolve().parents[1])]


def _devices():
    chosen = os.environ.get("ATTN_TEST_DEVICE")
    if chosen:
        return [chosen]
    try:
        import torch
    except ImportError:
        return ["cpu"]
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=_devices(), scope="session")
def device(request):
    return request.param
