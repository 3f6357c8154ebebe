"""The experiment on residual connections: that its arms differ in nothing else, and that it measures what it says."""

import io
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

pytest.importorskip("plotly", reason="plotly draws the page")
pytest.importorskip("sklearn", reason="scikit-learn has the digits")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "plain_vs_residual"))

import curves
import gradients
import page
import results
import run as command
import table
import training
import twins

from resnet_deploy import environment
from resnet_deploy.errors import FileError, SpecError
from resnet_deploy.models import Block, create_model

PAIRS = [("plain18", "resnet18"), ("plain34", "resnet34")]
SMALL = results.Recipe(epochs=1, batch=16)


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def few():
    """The digits, but only 32 to train on and 16 held out."""
    digits = training.load_digits()
    train, held_out = (
        training.Part(part.images[:count], part.labels[:count])
        for part, count in ((digits.train, 32), (digits.held_out, 16))
    )
    return training.Digits(train, held_out)


def made_up(arm, seed=0, *, steps=4, layers=17):
    """A run that nobody trained."""
    rising = tuple(2.0**layer for layer in range(layers, 0, -1))
    return results.Run(
        arm=arm,
        seed=seed,
        layers=tuple(f"conv{number}" for number in range(layers)),
        losses=tuple(2.0 - 0.1 * step - 0.01 * seed for step in range(steps)),
        errors=(0.9,) * steps,
        gradients=(rising,) * steps,
        weights=((1.0,) * layers,) * steps,
        held_out=(0.5, 0.25),
        training_error=0.125,
        likeness=(1.0, 0.5, 0.25),
        seconds=1.0,
    )


def record_of(*runs):
    return results.Record(recipe=results.Recipe(epochs=2), environment=environment.collect(), runs=runs)


# --- twins


@pytest.mark.parametrize(("plain", "residual"), PAIRS)
def test_twins_begin_with_the_same_weights(plain, residual):
    ours, theirs = (twins.make_arm(arm, seed=3).state_dict() for arm in (plain, residual))
    assert set(theirs) - set(ours) == {name for name in theirs if "downsample" in name} != set()
    assert set(ours) <= set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_seeding_alike_would_not_give_the_same_weights():
    ours, theirs = (create_model(arm, 10, seed=3).state_dict() for arm in PAIRS[0])
    assert not all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_seed_gives_other_weights():
    one, other = (twins.make_arm("plain18", seed).conv1.weight for seed in (0, 1))
    assert not torch.equal(one, other)


def test_shortcuts_are_the_only_difference(few):
    plain, residual = (twins.make_arm(arm, seed=0) for arm in PAIRS[0])
    images = few.train.images[:4]
    with torch.no_grad():
        wanted = plain(images)
        assert not torch.allclose(residual(images), wanted, rtol=0, atol=0.01)
        for part in residual.modules():
            if isinstance(part, Block):
                part.shortcuts = False
        # The same operations on the same numbers: to the bit.
        assert torch.equal(residual(images), wanted)


@pytest.mark.parametrize(("pair", "count"), [(PAIRS[0], 17), (PAIRS[1], 33)])
def test_twins_are_measured_at_the_same_layers(pair, count):
    chains = [twins.chain_of(twins.make_arm(arm, seed=0)) for arm in pair]
    assert list(chains[0]) == list(chains[1])
    assert len(chains[0]) == count  # with the classifier: 18 and 34


def deepened(shallow, deep, *, identity=True):
    """Copy the weights of a plain-18 into a plain-34; the other blocks compute the identity, or stay as they are."""
    state = shallow.state_dict()
    deep.load_state_dict({name: state.get(name, value) for name, value in deep.state_dict().items()})
    blocks = dict(shallow.named_modules())
    added = [part for name, part in deep.named_modules() if isinstance(part, Block) and name not in blocks]
    assert len(added) == 8
    for block in added if identity else []:
        for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
            nn.init.dirac_(conv.weight)
            nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)  # of a variance kept as 1
    return deep.eval()


@pytest.mark.parametrize("identity", [True, False])
def test_the_deeper_plain_network_contains_the_shallower_one(few, identity):
    shallow, deep = (twins.make_arm(arm, seed=0) for arm in ("plain18", "plain34"))
    training.settle(shallow, few.train.images)
    shallow.eval()
    with torch.no_grad():
        wanted = shallow(few.held_out.images)
        found = deepened(shallow, deep, identity=identity)(few.held_out.images)
    # Sixteen layers that round each of their numbers a few times, at 6e-8 each.
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4) == identity


def test_arms_come_in_pairs():
    assert twins.DEPTHS == (18, 34)
    assert twins.arms_of((18, 34)) == ("plain18", "resnet18", "plain34", "resnet34")


# --- gradients


def test_gradient_norms_by_hand():
    first, second = nn.Conv2d(2, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1))
        second.weight.fill_(5.0)
    second(first(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1))).sum().backward()
    # y = 5 (1 * 3 + 2 * 4): by the first layer 5 * (3, 4), of norm 25; by the second 11. Small integers are exact.
    assert gradients.gradient_norms([first, second]) == [25.0, 11.0]
    assert gradients.weight_norms([second]) == [5.0]


def test_gradient_norms_want_a_backward_pass():
    with pytest.raises(AssertionError, match="no backward pass"):
        gradients.gradient_norms([nn.Conv2d(1, 1, 1)])


def test_input_gradients_by_hand():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))
    found = gradients.input_gradients(network, torch.rand(4, 3, 1, 1))
    assert found.tolist() == [[11.0, 22.0, 33.0]] * 4


def test_a_walk_goes_from_one_image_to_the_other():
    start, end = torch.zeros(3, 2, 2), torch.full((3, 2, 2), 4.0)
    steps = gradients.walk(start, end, 5)
    assert steps.shape == (5, 3, 2, 2)
    assert steps[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_likeness_by_hand():
    # Cosines of neighbours 1, -1, 1: a mean of 1/3. A few operations in single precision: 1e-6.
    found = gradients.likeness_by_distance(torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]))
    assert found == pytest.approx([1, 1 / 3], abs=1e-6)


def test_smooth_gradients_are_alike_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 10_000, generator=generator)
    # The cosine of two random vectors of that dimension scatters by 0.01, a mean of 63 of them by far less; taking the
    # mean away leaves -1/63.
    assert gradients.likeness_by_distance(noise)[1] == pytest.approx(-1 / 63, abs=0.01)
    assert gradients.likeness_by_distance(noise.cumsum(0))[1] > 0.8


# --- training


@pytest.fixture(scope="module")
def trained(few):
    """Both arms of a pair, trained for one short epoch."""
    return {arm: training.train_arm(arm, 0, few, SMALL, lambda: None) for arm in PAIRS[0]}


def test_every_step_is_written_down(trained):
    for run in trained.values():
        assert len(run.losses) == len(run.errors) == len(run.gradients) == len(run.weights) == 2
        assert {len(norms) for norms in (*run.gradients, *run.weights)} == {17} == {len(run.layers)}
        assert len(run.held_out) == 1
        assert run.gradients[0] != run.gradients[1]
        assert run.weights[0] != run.weights[1]
        assert run.likeness[0] == pytest.approx(1, abs=1e-3)  # kept to four digits


def test_twins_have_the_same_weights_before_the_first_step_and_other_gradients(trained):
    plain, residual = (trained[arm] for arm in PAIRS[0])
    assert plain.weights[0] == residual.weights[0]
    assert plain.gradients[0] != residual.gradients[0]


def test_the_same_arguments_give_the_same_run(trained, few):
    again = training.train_arm("plain18", 0, few, SMALL, lambda: None)
    assert msgspec.structs.replace(again, seconds=0) == msgspec.structs.replace(trained["plain18"], seconds=0)


def test_another_seed_gives_another_run(trained, few):
    other = training.train_arm("plain18", 1, few, SMALL, lambda: None)
    assert other.losses != trained["plain18"].losses


def test_epochs_have_orders_of_their_own():
    one, two = training.draw_epochs(100, results.Recipe(epochs=2, batch=16), seed=0)
    assert one.shape == two.shape == (6, 16)
    assert len(one.unique()) == 96
    assert not torch.equal(one, two)


@pytest.mark.parametrize(("epochs", "dropping"), [(1, 1), (3, 2), (6, 4), (7, 5)])
def test_the_rate_drops_for_the_last_third(epochs, dropping):
    assert training.dropping_epoch(results.Recipe(epochs=epochs)) == dropping


def test_settling_takes_the_statistics_of_the_images():
    norm = nn.BatchNorm2d(1)
    images = torch.tensor([1.0, 3.0, 5.0, 7.0]).reshape(4, 1, 1, 1)
    norm(images)
    assert norm.running_mean.item() != 4
    training.settle(nn.Sequential(norm), images)
    assert norm.running_mean.item() == 4
    # The variance that PyTorch keeps is the sample's: (9 + 1 + 1 + 9) / 3. One rounding or two in single precision.
    assert norm.running_var.item() == pytest.approx(20 / 3, rel=1e-6)
    assert norm.momentum == 0.1


def test_the_split_is_that_of_the_other_digits():
    digits = training.load_digits()
    assert digits.train.images.shape == (1437, 3, 32, 32)
    assert digits.held_out.labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


# --- the record


def test_the_record_round_trips(tmp_path):
    record = record_of(made_up("plain18"), made_up("resnet18", 1))
    results.write_record(tmp_path / "record.json", record)
    assert results.read_record(tmp_path / "record.json") == record
    assert results.open_record(tmp_path / "record.json", record.recipe) == record


def test_a_record_of_another_recipe_or_machine_is_refused(tmp_path):
    path, record = tmp_path / "record.json", record_of(made_up("plain18"))
    results.write_record(path, record)
    with pytest.raises(SpecError, match="another recipe"):
        results.open_record(path, results.Recipe(epochs=7))
    elsewhere = msgspec.structs.replace(record.environment, python="2.7")
    results.write_record(path, msgspec.structs.replace(record, environment=elsewhere))
    with pytest.raises(SpecError, match=r"begun elsewhere: Python: 2\.7"):
        results.open_record(path, record.recipe)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schema": 1'])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(FileError, match="no record of this experiment"):
        results.read_record(tmp_path / "record.json")


def test_a_record_of_another_schema_is_refused(tmp_path):
    record = msgspec.structs.replace(record_of(), schema=0)
    results.write_record(tmp_path / "record.json", record)
    with pytest.raises(FileError, match="schema 0"):
        results.read_record(tmp_path / "record.json")


# --- what is shown


def test_growth_by_hand():
    assert table.growth(made_up("plain18")) == pytest.approx(2)  # each layer's gradient is twice the next one's
    steady = msgspec.structs.replace(made_up("plain18"), gradients=((3.0,) * 17,) * 4)
    assert table.growth(steady) == pytest.approx(1)


def test_the_last_loss_is_that_of_the_last_epoch():
    assert table.last_loss(made_up("plain18"), epochs=2) == pytest.approx((1.8 + 1.7) / 2)


def test_running_means_by_hand():
    assert curves.running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]


@pytest.mark.parametrize("arms", [("plain18", "resnet18"), twins.arms_of((18, 34))])
def test_every_arm_is_in_every_plot(arms):
    record = record_of(*(made_up(arm, seed) for arm in arms for seed in (0, 1)))
    for draw in (curves.draw_losses, curves.draw_errors, curves.draw_gradients, curves.draw_likeness):
        named = [trace.name for trace in draw(record).data if trace.showlegend]
        assert sorted(named) == sorted(arms), draw
    html = curves.render_page(record)
    assert all(html.count(f'"name":"{arm}"') >= 4 for arm in arms)
    assert "src=" not in html.split("<body>")[1]


def test_bold_curves_are_means_over_seeds():
    record = record_of(made_up("plain18", 0), made_up("plain18", 1))
    bold = [trace for trace in curves.draw_losses(record).data if trace.line.width > 1]
    assert len(bold) == 1
    assert bold[0].y[0] == pytest.approx(2.0 - 0.01 / 2)


# --- the page


def test_the_table_replaces_the_one_in_the_page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    record = record_of(made_up("plain18", 0), made_up("plain18", 1), made_up("resnet18"))
    for _ in range(2):  # the second time changes nothing
        page.fill_page(path, record)
        text = path.read_text()
        assert text == f"before\n<!-- measured -->\n{page.fenced(record)}<!-- /measured -->\nafter\n"
    assert "1.740\N{EN DASH}1.750" in text  # losses of the last of two epochs: (1.8 + 1.7) / 2, and a hundredth less
    assert "over 1 to 2 seeds, below them least to largest" in text


def test_the_table_fits_a_terminal_of_80_columns():
    console = Console(width=80, file=io.StringIO(), record=True)
    table.print_table(record_of(made_up("plain18", 0), made_up("plain18", 1), made_up("resnet34")), console)
    text = console.export_text()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(word in text for title in table.HEADER for word in title.split("\n"))


def test_a_page_without_a_place_is_refused(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("nothing")
    with pytest.raises(FileError, match="0 places"):
        page.fill_page(path, record_of(made_up("plain18")))
    assert path.read_text() == "nothing"


def test_the_readme_has_figures_of_every_arm():
    (shown,) = page.PLACE.findall(page.PAGE.read_text())
    assert [line.split()[0] for line in shown.splitlines() if line.startswith(("plain", "resnet"))] == list(
        twins.arms_of(twins.DEPTHS)
    )


# --- the command


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Run the command with a stand-in for training; return what it was asked to train, the exit code and the output."""

    digits = training.Digits(*[training.Part(torch.zeros(64), torch.zeros(64))] * 2)
    asked = []

    def pretend(arm, seed, *_):
        asked.append((arm, seed))
        return made_up(arm, seed)

    def call(*arguments):
        asked.clear()
        outcome = CliRunner().invoke(command.main, ["--out", str(tmp_path), "--epochs", "2", *arguments])
        return list(asked), outcome

    monkeypatch.setattr(command, "load_digits", lambda: digits)
    monkeypatch.setattr(command, "train_arm", pretend)
    yield call
    torch.use_deterministic_algorithms(False)  # the command's own setting, which would outlive it here


def test_finished_runs_are_not_made_again(invoke, tmp_path):
    asked, outcome = invoke("--depths", "18", "--seeds", "1")
    assert outcome.exit_code == 0, outcome.output
    assert asked == [("plain18", 0), ("resnet18", 0)]
    assert "resnet18" in (tmp_path / "curves.html").read_text()
    asked, outcome = invoke("--depths", "18", "--seeds", "2")
    assert asked == [("plain18", 1), ("resnet18", 1)]
    asked, outcome = invoke("--seeds", "2")
    assert asked == [(arm, seed) for seed in (0, 1) for arm in PAIRS[1]]
    asked, outcome = invoke("--seeds", "2")
    assert asked == []
    assert outcome.exit_code == 0
    assert len(results.read_record(tmp_path / "record.json").runs) == 8


def test_another_recipe_in_the_same_folder_is_an_error(invoke):
    assert invoke("--depths", "18")[1].exit_code == 0
    asked, outcome = invoke("--depths", "18", "--rate", "0.5")
    assert outcome.exit_code == 2
    assert "another recipe" in outcome.output
    assert not asked


@pytest.mark.parametrize("depths", ["20", "18,fifty", ""])
def test_depths_without_twins_are_an_error(invoke, depths):
    asked, outcome = invoke("--depths", depths)
    assert outcome.exit_code == 2
    assert not asked
