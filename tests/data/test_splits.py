import numpy as np
import pytest

from stgen.data._splits import block_labels, split_groups, too_close


def test_no_group_is_ever_divided():
    rng = np.random.default_rng(0)
    groups = rng.choice([f"p{i}" for i in range(12)], 500)
    for seed in range(20):
        split = split_groups(groups, validation=0.2, test=0.3, random_state=seed)
        for name in np.unique(groups):
            assert len(set(split[groups == name])) == 1


def test_shares_come_as_close_as_groups_allow():
    groups = np.repeat(np.arange(100), 10)
    split = split_groups(groups, validation=0.1, test=0.25, random_state=3)
    assert (split == "test").mean() == 0.25
    assert (split == "validation").mean() == 0.1
    assert (split == "train").mean() == 0.65


def test_a_share_above_zero_takes_at_least_one_group_and_leaves_one_for_each_role():
    split = split_groups(["a", "b", "c"], validation=0.9, test=0.9)
    assert sorted(split) == ["test", "train", "validation"]
    assert sorted(split_groups(["a", "b", "c"], validation=0.01, test=0.01)) == [
        "test",
        "train",
        "validation",
    ]


def test_a_number_of_numpy_is_a_share():
    split = split_groups(np.arange(8), test=np.float32(0.25))
    assert (split == "test").sum() == 2


def test_zero_takes_none():
    assert set(split_groups(np.arange(50), validation=0, test=0)) == {"train"}


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    rng = np.random.default_rng(0)
    groups, order = rng.choice(list("abcdefghij"), 200), rng.permutation(200)
    split = split_groups(groups, validation=0.2, test=0.2, random_state=1)
    np.testing.assert_array_equal(
        split_groups(groups[order], validation=0.2, test=0.2, random_state=1), split[order]
    )
    others = [split_groups(groups, validation=0.2, test=0.2, random_state=s) for s in range(2, 8)]
    assert any((other != split).any() for other in others)


def test_named_groups_go_where_they_are_sent_and_a_share_never_takes_them():
    groups = np.array(["C2", "C3", "C4", "C5"]).repeat(5)
    for seed in range(10):
        split = split_groups(groups, validation="C3", test=0.25, random_state=seed)
        assert set(split[groups == "C3"]) == {"validation"}
        assert (split == "test").sum() == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test": ["C9"]}, "`test` names section C9, which does not exist; there are C2, C3"),
        ({"test": ["C2"], "validation": ["C2"]}, "Section C2 is named for both"),
        ({"test": 1.5}, "at least 0 and below 1, or names; got 1.5"),
        ({"test": 0.5, "validation": 0.5}, "No section is left for training: there are 2"),
        ({"test": ["C2", "C3"]}, "No section is left for training"),
    ],
)
def test_impossible_splits_say_why(settings, message):
    with pytest.raises(ValueError, match=message):
        split_groups(["C2", "C3"], what="section", **settings)


def test_blocks_are_squares_of_one_section():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 5000, (2000, 2))
    section = rng.choice(["a", "b"], 2000)
    labels = block_labels(xy, section, block_um=800)
    for label in np.unique(labels):
        here = labels == label
        assert len(set(section[here])) == 1
        assert (np.ptp(xy[here], axis=0) < 800).all()


def test_the_buffer_is_all_and_only_the_training_spots_that_are_near():
    rng = np.random.default_rng(0)
    xy, section = rng.uniform(0, 100, (200, 2)), rng.choice(["a", "b"], 200)
    split = rng.choice(["train", "validation", "test"], 200, p=[0.8, 0.1, 0.1]).astype(object)
    slow = [
        split[i] == "train"
        and any(
            split[j] != "train" and section[j] == section[i] and np.hypot(*(xy[i] - xy[j])) < 7
            for j in range(200)
        )
        for i in range(200)
    ]
    np.testing.assert_array_equal(too_close(xy, section, split, buffer_um=7), slow)


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    split_groups(np.arange(100), test=0.2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
