"""Training does what its options say, repeats itself by seed, and leaves the session as it was."""

from __future__ import annotations

import logging
import os
import random
import signal
import warnings

import numpy as np
import pytest
import torch

from stgen.train import TrainingOptions, fit, prepare
from stgen.train._state import TrainingState, load_state, save_state

NOTHING = np.empty(0, dtype=int)


def options(**changes):
    return TrainingOptions(**{"max_epochs": 4, "batch_size": 16, "lr": 0.05, **changes})


def run(network, table, sides, **changes):
    keywords = {key: changes.pop(key) for key in ("state", "on_epoch", "progress_bar") if key in changes}
    return fit(network, table, *sides, options(**changes), **{"progress_bar": False, **keywords})


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# what is learned --------------------------------------------------------------------------------------------


def test_a_line_is_found(line, table, sides):
    network = line()
    report = run(network, table, sides, max_epochs=60, weight_decay=0.0)
    np.testing.assert_allclose(network.linear.weight.detach().numpy(), [[1.0, -2.0, 0.5]], atol=0.05)
    assert report.history[-1]["validation_loss"] < 0.01 * report.history[0]["validation_loss"]
    assert not network.training


def test_history_has_one_row_per_epoch_with_losses_and_parts(line, table, sides):
    history = run(line(), table, sides).history
    assert len(history) == 4
    columns = {"lr", "train_loss", "train_half", "validation_loss", "validation_half"}
    assert all(set(row) == columns for row in history)
    assert history[0]["train_half"] == pytest.approx(history[0]["train_loss"] / 2)


def test_epoch_losses_are_means_over_rows_not_over_batches(line, table):
    network = line()
    sides = np.arange(40), np.arange(40, 57)  # 17 rows in batches of 16 and 1
    report = run(network, table, sides, max_epochs=1)
    batch = table.batch(torch.arange(40, 57))
    assert report.history[0]["validation_loss"] == pytest.approx(network.loss(batch).total.item(), rel=1e-5)


def test_training_rows_are_seen_once_per_epoch_and_test_rows_never(line, table):
    run(line(), table, (np.arange(10), np.arange(20, 25)), max_epochs=3, batch_size=4)
    seen = sorted(row for rows in table.asked for row in rows)
    assert seen == sorted([*range(10)] * 3 + [*range(20, 25)] * 3)


def test_vectors_are_not_decayed(line, table):
    network = line()
    with torch.no_grad():
        network.linear.bias.fill_(5.0)
    table.x.zero_()
    table.y.fill_(5.0)
    run(network, table, (np.arange(40), NOTHING), weight_decay=0.5, lr=0.1)
    assert network.linear.bias.item() == pytest.approx(5.0)
    assert abs(network.linear.weight[0, 0].item()) < 0.1


def test_gradients_are_clipped(line, table, sides):
    table.y *= 1e6
    norms = []
    network = line()
    original = torch.nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        norms.append(original(parameters, limit).item())

    torch.nn.utils.clip_grad_norm_ = spy
    try:
        run(network, table, sides, max_epochs=1, gradient_clip=1.0)
        n_clipped = len(norms)
        run(network, table, sides, max_epochs=1, gradient_clip=0)
    finally:
        torch.nn.utils.clip_grad_norm_ = original
    assert n_clipped == len(norms) == 3
    assert min(norms) > 1


# which weights are kept -------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_weights(line, table, sides):
    table.y[40:] = table.x[40:] @ torch.tensor(
        [[0.2], [0.0], [0.1]]
    )  # validation gets worse as training proceeds
    network = line()
    kept = {}
    report = run(
        network,
        table,
        sides,
        max_epochs=50,
        patience=5,
        on_epoch=lambda plan: kept.update({plan.state.epoch: weights(network)}),
    )
    losses = [row["validation_loss"] for row in report.history]
    assert report.best_epoch == int(np.argmin(losses))
    assert report.n_epochs == len(losses) == report.best_epoch + 1 + 5
    assert_same(weights(network), kept[report.best_epoch + 1])


def test_without_early_stopping_the_last_weights_are_kept(line, table, sides):
    network, last = line(), {}
    report = run(
        network, table, sides, early_stopping=False, on_epoch=lambda plan: last.update(weights(network))
    )
    assert report.best_epoch is None
    assert report.n_epochs == 4
    assert_same(weights(network), last)
    assert "validation_loss" in report.history[0]


def test_validation_rows_do_not_touch_training(line, table, sides):
    a, b, c = line(dropout=0.3, noise=0.1), line(dropout=0.3, noise=0.1), line(dropout=0.3, noise=0.1)
    run(a, table, sides, early_stopping=False)
    run(c, table, (sides[0], NOTHING), early_stopping=False)
    table.y[40:] = 100
    run(b, table, sides, early_stopping=False)
    assert_same(weights(a), weights(b))
    assert_same(weights(a), weights(c))


def test_the_running_average_is_validated_and_kept(line, table, sides):
    averages, seen = [], []
    network = line()

    def watch(plan):
        averages.append({name: tensor.clone() for name, tensor in plan.state.average.items()})
        seen.append(plan.state.history[-1]["validation_loss"])

    run(network, table, sides, ema_decay=0.9, early_stopping=False, on_epoch=watch)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, averages[-1][name])
    assert seen[-1] == pytest.approx(network.loss(table.batch(torch.arange(40, 60))).total.item(), rel=1e-5)


def test_the_running_average_equals_a_slow_loop(line, table, sides):
    network, averages = line(), []
    trail = []
    original = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        trail.append(network.linear.weight.detach().clone())
        return result

    torch.optim.AdamW.step = spy
    start = network.linear.weight.detach().clone()
    try:
        run(
            network,
            table,
            sides,
            ema_decay=0.9,
            early_stopping=False,
            on_epoch=lambda plan: averages.append(plan.state.average["linear.weight"].clone()),
        )
    finally:
        torch.optim.AdamW.step = original
    slow = start
    for step, weight in enumerate(trail, start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        slow = decay * slow + (1 - decay) * weight
    torch.testing.assert_close(averages[-1], slow)


# repeating and resuming -------------------------------------------------------------------------------------


def test_one_seed_gives_one_result_and_another_another(line, table, sides):
    def fitted(seed):
        network = line(dropout=0.3, noise=0.5)
        run(network, table, sides, random_state=seed)
        return weights(network)

    torch.manual_seed(1)
    first = fitted(0)
    torch.manual_seed(2)
    assert_same(first, fitted(0))
    assert not torch.equal(first["linear.weight"], fitted(1)["linear.weight"])


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"ema_decay": 0.9}, {"early_stopping": False, "ema_decay": 0.5}, {"patience": 2}]
)
def test_a_resumed_run_equals_an_uninterrupted_one(line, table, sides, tmp_path, stop, changes):
    table.y[40:] += 3 * table.x[40:, :1]  # so that validation and training disagree
    whole = line(dropout=0.3, noise=0.5)
    report = run(whole, table, sides, max_epochs=6, **changes)

    class Stop(Exception):
        pass

    def save_and_stop(plan):
        save_state(tmp_path, plan.state, weights(plan.network), plan.optimizer, plan.options, {"note": 1})
        if plan.state.epoch == stop:
            raise Stop

    with pytest.raises(Stop):
        run(line(dropout=0.3, noise=0.5), table, sides, max_epochs=6, on_epoch=save_and_stop, **changes)
    state, saved, used, facts = load_state(tmp_path)
    resumed = line(dropout=0.3, noise=0.5)
    resumed.load_state_dict(saved)
    again = fit(resumed, table, *sides, used, progress_bar=False, state=state)
    assert facts == {"note": 1}
    assert_same(weights(whole), weights(resumed))
    assert again.history == report.history
    assert again.best_epoch == report.best_epoch


def test_a_finished_run_resumes_to_itself(line, table, sides, tmp_path):
    network = line()

    def save(plan):
        save_state(tmp_path, plan.state, weights(plan.network), plan.optimizer, plan.options, {})

    report = run(network, table, sides, on_epoch=save)
    state, saved, used, _ = load_state(tmp_path)
    again = line()
    again.load_state_dict(saved)
    assert fit(again, table, *sides, used, progress_bar=False, state=state).n_epochs == report.n_epochs
    assert_same(weights(network), weights(again))


def test_preparation_sees_training_rows_only_and_is_seeded(line, table, sides):
    networks = [line(), line()]
    for network in networks:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        prepare(network, table, sides[0], random_state=3)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert networks[0].draw == networks[1].draw
    assert {row for rows in table.asked for row in rows} == set(sides[0])
    assert networks[0].mean == pytest.approx(float(table.y[:40].mean()))


def test_preparation_reads_as_many_rows_at_once_as_the_bytes_allow(line, table, sides, monkeypatch):
    monkeypatch.setattr("stgen.data._loaders.BYTES_AT_ONCE", 360)
    row = sum(values.nbytes for values in table.batch(torch.arange(1)).values())
    table.asked.clear()
    prepare(line(), table, sides[0], random_state=3)
    assert max(map(len, table.asked)) == 360 // row == 15


# the session ------------------------------------------------------------------------------------------------


def test_global_state_is_left_as_found(line, table, sides):
    network = line(dropout=0.5)
    torch.manual_seed(7)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    try:
        run(network, table, sides)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_training_is_silent_and_leaves_no_files(line, table, sides, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(line(), table, sides)
        run(line(), table, (sides[0], NOTHING))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if "lightning" in record.name]
    assert os.listdir(tmp_path) == []


def test_warnings_of_a_network_are_heard(line, table, sides):
    class Warning_(line):
        def loss(self, batch, *, generator=None):
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
            return super().loss(batch, generator=generator)

    with pytest.warns(UserWarning, match="mind the gap"):
        run(Warning_(), table, sides, max_epochs=1)


def test_levels_of_lightning_loggers_come_back(line, table, sides):
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    run(line(), table, sides, max_epochs=1)
    assert logger.level == level


def test_there_is_one_bar_and_it_tells_epoch_and_losses(line, table, sides, capfd):
    run(line(), table, sides, progress_bar=True)
    shown = capfd.readouterr().err
    assert "Training epoch 4/4" in shown
    assert "12/12" in shown
    assert "validation=" in shown
    assert shown.count("\n") <= 1


def test_divergence_says_what_to_try(line, table, sides):
    table.y[3] = float("inf")
    with pytest.raises(
        ValueError, match=r"The loss became (inf|nan) in epoch 1 of 4: .*Try a lower `lr` \(it was 0.05\)"
    ):
        run(line(), table, sides)


def impatient(line, n_losses, n_phases=1):
    """A network whose user presses Ctrl-C at the ``n_losses``-th batch; its phases last two epochs each."""

    class Impatient(line):
        n_left = n_losses

        def begin_epoch(self, epoch, n_epochs, batches):
            return min(epoch // 2, n_phases - 1)

        def loss(self, batch, *, generator=None):
            if self.training:
                self.n_left -= 1
                if self.n_left < 0:
                    raise KeyboardInterrupt
            return super().loss(batch, generator=generator)

    Impatient.n_phases = n_phases
    return Impatient()


def test_an_interrupt_in_the_first_epoch_reaches_the_user(line, table, sides):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        KeyboardInterrupt, match=r"Training was interrupted in epoch 1 of 4, .*; the model is not fitted"
    ):
        run(impatient(line, 2), table, sides)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_interrupt_keeps_the_weights_of_the_last_finished_epoch(line, table, sides, ema_decay):
    """Not those of the steps after it: 40 rows are 3 batches, and the 8th never comes."""
    kept = []

    def remember(plan):
        with plan.averaged_weights():
            kept.append(weights(plan.network))

    network, handler = impatient(line, 7), signal.getsignal(signal.SIGINT)
    report = run(network, table, sides, ema_decay=ema_decay, on_epoch=remember, early_stopping=False)
    assert report.interrupted
    assert report.n_epochs == len(report.history) == len(kept) == 2
    assert_same(weights(network), kept[1])
    assert not network.training
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_keeps_the_best_weights_where_validation_chooses(line, table, sides):
    table.y[sides[1]] = -table.y[sides[1]]  # validation gets worse from the first epoch on
    best = {}

    def remember(plan):
        best.setdefault("of first epoch", {name: t.clone() for name, t in plan.state.best.items()})

    network = impatient(line, 7)
    report = run(
        network,
        table,
        sides,
        lr=0.5,
        max_epochs=9,
        warmup=0.0,
        early_stopping=True,
        patience=8,
        on_epoch=remember,
    )
    assert (report.interrupted, report.n_epochs, report.best_epoch) == (True, 2, 0)
    assert_same(weights(network), best["of first epoch"])


def test_an_interrupt_before_the_last_phase_leaves_nothing_of_use(line, table, sides):
    with pytest.raises(KeyboardInterrupt, match="in epoch 3 of 4, before its weights are of use"):
        run(impatient(line, 8, n_phases=2), table, sides)
    assert run(impatient(line, 10, n_phases=2), table, sides).n_epochs == 3


def test_an_interrupted_resumed_run_keeps_what_it_went_on_from(line, table, sides, tmp_path):
    def save(plan):
        if plan.state.epoch == 2:
            save_state(
                tmp_path, plan.state, dict(plan.network.state_dict()), plan.optimizer, plan.options, {}
            )

    run(line(), table, sides, on_epoch=save, early_stopping=False)
    state, last, _, _ = load_state(tmp_path)
    network = impatient(line, 2)
    network.load_state_dict(last)
    report = run(network, table, sides, state=state, early_stopping=False)
    assert (report.interrupted, report.n_epochs) == (True, 2)
    assert_same(weights(network), last)


def test_bf16_trains_on_cpu(line, table, sides):
    network = line()
    report = fit(
        network, table, *sides, options(precision="bf16"), device=torch.device("cpu"), progress_bar=False
    )
    assert network.linear.weight.dtype == torch.float32
    assert report.history[-1]["train_loss"] < report.history[0]["train_loss"]


def test_state_is_plain_files(line, table, sides, tmp_path):
    def save(plan):
        save_state(tmp_path, plan.state, weights(plan.network), plan.optimizer, plan.options, {})

    run(line(), table, sides, on_epoch=save)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    state, *_ = load_state(tmp_path)
    assert isinstance(state, TrainingState)
    assert state.epoch == 4
