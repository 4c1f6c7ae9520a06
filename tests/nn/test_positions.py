"""Sinusoids of places: what they resolve, what they are blind to, what they can add up to."""

import math

import numpy as np
import pytest
import torch

from stgen.nn._positions import periods, plane_waves, sinusoid

SPOTS = torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6000 - 3000


def rotated(xy, angle):
    turn = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=xy.dtype
    )
    return xy @ turn


def test_periods_run_geometrically_from_the_longest_to_the_shortest():
    period = periods(5, 100.0, 8100.0)
    np.testing.assert_allclose(period.numpy(), [8100, 2700, 900, 300, 100], rtol=1e-4)


def test_equal_ends_are_allowed():
    np.testing.assert_allclose(periods(3, 50.0, 50.0).numpy(), [50, 50, 50], rtol=1e-5)


@pytest.mark.parametrize(("shortest", "longest"), [(0.0, 10.0), (-1.0, 10.0), (20.0, 10.0)])
def test_impossible_periods_are_refused(shortest, longest):
    with pytest.raises(ValueError, match=rf"0 < shortest <= longest; got {shortest} and {longest}"):
        periods(4, shortest, longest)


def test_a_sinusoid_equals_a_loop():
    value, period = torch.tensor([[0.0, 1.5], [-3.0, 40.0]]), torch.tensor([2.0, 5.0, 31.0])
    code = sinusoid(value, period)
    assert code.shape == (2, 2, 6)
    for i in range(2):
        for j in range(2):
            angles = [2 * math.pi * float(value[i, j]) / p for p in period.tolist()]
            expected = [*map(math.sin, angles), *map(math.cos, angles)]
            np.testing.assert_allclose(code[i, j].numpy(), expected, atol=1e-5)


def test_plane_waves_equal_a_loop_over_periods_directions_and_phases():
    period, n_directions = torch.tensor([4000.0, 700.0], dtype=torch.float64), 3
    code = plane_waves(SPOTS[:5], period, n_directions)
    expected = []
    for x, y in SPOTS[:5].tolist():
        row = []
        for p in period.tolist():
            for d in range(n_directions):
                along = x * math.cos(d * math.pi / n_directions) + y * math.sin(d * math.pi / n_directions)
                row += [math.sin(2 * math.pi * along / p), math.cos(2 * math.pi * along / p)]
        expected.append(row)
    np.testing.assert_allclose(code.numpy(), expected, atol=1e-9)


def test_similarity_of_two_places_depends_on_their_displacement_alone():
    """Where the section lies on its slide changes every code, but not which places look alike."""
    period = periods(6, 300.0, 12_000.0).double()
    here, there = (
        plane_waves(SPOTS, period, 8),
        plane_waves(SPOTS + torch.tensor([517.0, -2250.0]), period, 8),
    )
    assert (here - there).abs().max() > 0.5
    np.testing.assert_allclose((here @ here.T).numpy(), (there @ there.T).numpy(), atol=1e-9)


def test_turning_a_section_by_one_direction_only_renames_the_waves():
    """The last direction comes round as the first one running backwards: its sine changes sign."""
    period, n = periods(3, 500.0, 5000.0).double(), 4
    here = plane_waves(SPOTS, period, n).unflatten(-1, (3, n, 2))
    turned = plane_waves(rotated(SPOTS, -math.pi / n), period, n).unflatten(-1, (3, n, 2))
    np.testing.assert_allclose(turned[:, :, :-1].numpy(), here[:, :, 1:].numpy(), atol=1e-9)
    np.testing.assert_allclose(turned[:, :, -1, 1].numpy(), here[:, :, 0, 1].numpy(), atol=1e-9)
    np.testing.assert_allclose(turned[:, :, -1, 0].numpy(), -here[:, :, 0, 0].numpy(), atol=1e-9)


def test_a_long_period_tells_the_ends_of_a_slide_apart_and_a_short_one_neighbours():
    period = periods(6, 400.0, 4 * 6500.0).double()
    places = torch.tensor([[-3250.0, 0.0], [3250.0, 0.0], [3350.0, 0.0]], dtype=torch.float64)
    code = plane_waves(places, period, 8)
    assert (code[0] - code[1]).norm() > 1
    assert (code[1] - code[2]).norm() > 1


def explained(code, pattern):
    """R² of the best linear readout."""
    design = np.column_stack([np.ones(len(code)), code.numpy()])
    residual = pattern - design @ np.linalg.lstsq(design, pattern, rcond=None)[0]
    return 1 - (residual**2).sum() / ((pattern - pattern.mean()) ** 2).sum()


def test_waves_in_several_directions_add_up_to_a_product_of_x_and_y_and_axes_alone_do_not():
    """sin a · sin b = ½ (cos(a − b) − cos(a + b)): a checkerboard is two diagonal waves."""
    p = 2000.0
    x, y = SPOTS.numpy().T
    checkerboard = np.sin(2 * np.pi * x / p) * np.sin(2 * np.pi * y / p)
    period = torch.tensor([p, p / math.sqrt(2)], dtype=torch.float64)
    assert explained(plane_waves(SPOTS, period, 4), checkerboard) > 1 - 1e-9
    assert explained(plane_waves(SPOTS, period, 2), checkerboard) < 0.2
