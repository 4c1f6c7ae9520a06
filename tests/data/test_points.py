"""x and y by name where columns have names, and a third column that says nothing is no obstacle."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stgen.data._points import points

XY = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])


@pytest.mark.parametrize(
    "value",
    [
        XY,
        XY.tolist(),
        XY.astype(int),
        sparse.csr_matrix(XY),
        pd.DataFrame(XY, columns=["x", "y"]),
        pd.DataFrame(XY[:, ::-1], columns=["y", "x"]),
        pd.DataFrame(XY[:, ::-1], columns=["Y_centroid", "X_centroid"]),
        pd.DataFrame(XY[:, ::-1], columns=["pxl_row_in_fullres", "pxl_col_in_fullres"]),
        pd.DataFrame(XY, columns=["first", "second"]),
        pd.DataFrame({"name": ["a", "b", "c"], "y": XY[:, 1], "x": XY[:, 0]}),
    ],
)
def test_x_comes_before_y(value):
    np.testing.assert_array_equal(points(value, "places"), XY)


def test_columns_that_leave_x_or_y_open_are_refused():
    with pytest.raises(ValueError, match=r"one column for x and one for y; its columns are \['x', 'x_um'\]"):
        points(pd.DataFrame(XY, columns=["x", "x_um"]), "places")
    with pytest.raises(ValueError, match=r"its columns are \['x', 'b'\]"):
        points(pd.DataFrame(XY, columns=["x", "b"]), "places")


@pytest.mark.parametrize("third", [0.0, 5.5, np.nan])
def test_a_constant_third_column_is_left_out_and_said(third):
    with pytest.warns(UserWarning, match="three columns; the third is the same for all spots"):
        np.testing.assert_array_equal(points(np.c_[XY, np.full(3, third)], "obsm['spatial']"), XY)


def test_a_third_column_that_varies_names_the_ways_out():
    with pytest.raises(
        ValueError, match=r"third column varies from 0 to 2. .*`library_key=`; or keep the first two"
    ):
        points(np.c_[XY, np.arange(3)], "obsm['spatial']")
    table = pd.DataFrame(np.c_[XY, np.arange(3)], columns=["x", "y", "z"])
    with pytest.raises(ValueError, match="third column varies"):
        points(table, "obsm['spatial']")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (XY[:, :1], r"must be cells × 2 \(x, y\); its shape is \(3, 1\)"),
        (XY.astype(str), "must be numbers"),
        (np.where(XY == 2, np.inf, XY), "1 of 3 cells have NaN or infinite coordinates, such as b"),
    ],
)
def test_what_is_no_place_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        points(value, "obsm['spatial']", names=["a", "b", "c"], rows_are="cells")
