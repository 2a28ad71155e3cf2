"""Weights in half the bytes: which ones, and what that changes of them."""

import pytest
import torch
from toys import example

from common.half_precision import in_half_precision, in_single_precision


def halved(tensor: torch.Tensor) -> torch.Tensor:
    return in_half_precision({"it": tensor})["it"]


def test_tensors_of_two_and_more_dimensions_take_half_the_bytes_and_norms_stay():
    whole = example("test_resnet")
    half = in_half_precision(whole.weights)
    for name, tensor in whole.weights.items():
        if tensor.ndim >= 2:
            assert half[name].dtype == torch.float16
            assert torch.allclose(half[name].float(), tensor, rtol=2**-11, atol=2**-25)
        else:
            assert half[name] is tensor


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[1.0, 65520.0]]),  # which rounds to infinity
        torch.full((2, 3), 1e-7),  # of which two bits are left
        torch.tensor([[1.0, float("nan")]]),
        torch.tensor([[1.0, float("inf")]]),
        torch.ones(2, 2, dtype=torch.int64),
        torch.ones(2, 2, dtype=torch.bfloat16),
    ],
)
def test_what_half_precision_would_change_stays_as_it_is(tensor):
    assert halved(tensor) is tensor


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[65504.0, -65504.0]]),
        torch.zeros(2, 3),
        torch.zeros(0, 3),
        torch.tensor([[1.0, 1e-30]]),  # which changes nothing of a length of 1
    ],
)
def test_the_ends_of_the_range_and_nothing_at_all_take_half_the_bytes(tensor):
    assert halved(tensor).dtype == torch.float16


def test_what_was_rounded_once_is_not_changed_by_doing_it_again():
    half = in_half_precision({"it": torch.randn(5, 7), "bias": torch.randn(5)})
    single = in_single_precision(half)
    assert single["it"].dtype == torch.float32
    assert torch.equal(in_half_precision(single)["it"], half["it"])
    assert single["bias"] is half["bias"]


def test_parameters_with_gradients_give_plain_tensors():
    assert not halved(torch.nn.Parameter(torch.ones(2, 2))).requires_grad
