"""Agreement of labels and clusters."""

import numpy as np
import pytest
from sklearn import metrics as sk

from stgen import metrics


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    truth = rng.choice(list("abcd"), 200)
    return truth, np.where(rng.random(200) < 0.6, truth, rng.choice(list("abc"), 200))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("ami", sk.adjusted_mutual_info_score),
        ("ari", sk.adjusted_rand_score),
        ("nmi", sk.normalized_mutual_info_score),
        ("macro_f1", lambda t, p: sk.f1_score(t, p, average="macro")),
        ("balanced_accuracy", sk.balanced_accuracy_score),
    ],
)
def test_score_equals_scikit_learn_and_is_one_for_equal_labels(name, reference, labels):
    score = getattr(metrics, name)
    assert score(*labels) == pytest.approx(reference(*labels), abs=1e-12)
    assert score(labels[0], labels[0]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["ami", "ari", "nmi"])
def test_names_of_clusters_do_not_matter(name, labels):
    renamed = np.array([{"a": 7, "b": 5, "c": 1, "d": 2}[c] for c in labels[1]])
    assert getattr(metrics, name)(labels[0], renamed) == pytest.approx(getattr(metrics, name)(*labels))


def test_scores_by_hand():
    truth, prediction = ["a", "a", "a", "b"], ["a", "a", "c", "b"]
    assert metrics.f1_per_class(truth, prediction) == pytest.approx({"a": 0.8, "b": 1.0, "c": 0.0})
    assert metrics.macro_f1(truth, prediction) == pytest.approx(0.6)
    assert metrics.balanced_accuracy(truth, prediction) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.ari([0, 0, 1, 1], ["x", "x", "y", "y"]) == 1


@pytest.mark.parametrize("name", ["ami", "ari", "nmi", "macro_f1", "balanced_accuracy", "f1_per_class"])
def test_errors_say_what_was_found(name):
    score = getattr(metrics, name)
    with pytest.raises(ValueError, match=r"same length; got shapes \(2,\) and \(1,\)"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"1 label\(s\) are missing"):
        score(np.array(["a", np.nan], dtype=object), ["a", "b"])
    with pytest.raises(ValueError, match="no labels"):
        score([], [])
