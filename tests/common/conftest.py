"""A toy network, a mask of half of its units, and a task that it can learn."""

import pytest
from toys import Example, example, random_mask, task_of

from common.mask import Mask
from common.task_data import Task


@pytest.fixture(scope="module")
def ours() -> Example:
    return example("test_resnet", 32)


@pytest.fixture(scope="module")
def half(ours) -> Mask:
    return random_mask(ours.structure, 0.5)


@pytest.fixture(scope="module")
def task(ours) -> Task:
    return task_of(ours.backbone)
