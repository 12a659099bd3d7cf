"""fp32 stays fp32, whichever library multiplies."""

import torch

from puna.model import precision


def test_products_are_fp32_afterwards_on_any_cpu(monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        precision.use_onednn_for_fp32()
        assert precision._error() < precision.TOLERANCE
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_where_products_would_be_rounded_the_setting_is_taken_back(monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(precision, "_error", lambda: 2e-3)  # what a CPU with AMX gives
    assert not precision.use_onednn_for_fp32()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
