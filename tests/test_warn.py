"""Numbers in messages look like what they are."""

from __future__ import annotations

import numpy as np
import pytest

from stgen import metrics
from stgen._warn import number, share
from stgen.data._fields import check_counts
from stgen.pp._images import open_image
from stgen.pp._tile_reader import check_pixel_size


@pytest.mark.parametrize(
    ("value", "unlike", "shown"),
    [
        (np.float32(68.99999), [69], "68.99999"),
        (68.99999, [], "69"),
        (0.5, [0], "0.5"),
        (np.float64(10.0001), [0.1, 10], "10.0001"),
        (0.0999999, [0.1], "0.0999999"),
        (np.float32(1.0000001), [1], "1.0000001"),
        (-1e-9, [0], "-1e-09"),
        (12345.6, [], "12346"),
        (12345.6, [12346], "12345.6"),
        (10, [10], "10"),
        (3e22, [], "3e+22"),
        (np.int64(7), [], "7"),
    ],
)
def test_a_number_has_the_digits_that_tell_it_apart(value, unlike, shown):
    assert number(value, *unlike) == shown


def test_a_share_is_nothing_only_of_nothing_and_all_only_of_all():
    assert [share(n, 1000) for n in (0, 1, 5, 500, 995, 999, 1000)] == [
        "0%", "under 1%", "under 1%", "50%", "over 99%", "over 99%", "100%"
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_count_that_is_not_whole_never_looks_whole(dtype):
    counts = np.full((30, 40), 69, dtype=dtype)
    counts[3, 4] = 68.99999
    with pytest.raises(
        ValueError, match=r"found under 1% of values that are not whole numbers, such as 68\.99999\."
    ):
        check_counts(counts)


def test_a_value_just_outside_never_looks_like_the_limit():
    with pytest.raises(ValueError, match=r"A pixel of 10\.00001 µm is implausible; expected 0\.1 to 10 µm"):
        check_pixel_size(10.00001)
    image = np.ones((4, 4, 3), dtype=np.float32)
    image[0, 0, 0] = np.nextafter(np.float32(1), np.float32(2))
    with pytest.raises(ValueError, match=r"floats from 0 to 1; it has floats from 1 to 1\.0000001\."):
        open_image(image)
    with pytest.raises(ValueError, match=r"got 0\.5 ≤ cdf_below and cdf_at ≤ 1\.00002"):
        metrics.randomized_pit(np.ones((1, 1)), [[0.5]], [[1.00002]], random_state=0)
