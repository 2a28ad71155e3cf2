import torch

from common.images import in_turn


def test_images_come_in_turn_one_of_every_class_while_it_has_any():
    """By hand: classes 0, 1, 2 with 4, 1 and 2 images; within a class the order is as it was."""
    labels = torch.tensor([0, 0, 1, 0, 2, 2, 0])
    order = torch.tensor([6, 5, 0, 2, 1, 4, 3])
    assert in_turn(labels, order).tolist() == [6, 5, 2, 0, 4, 1, 3]


def test_the_first_images_in_turn_are_of_all_classes_alike():
    labels = torch.tensor([0] * 100 + [1] * 3 + [2] * 10)
    order = torch.randperm(113, generator=torch.Generator().manual_seed(1))
    every = in_turn(labels, order)
    assert torch.equal(every.sort().values, torch.arange(113))
    assert torch.bincount(labels[every[:16]]).tolist() == [7, 3, 6]
