import json
from pathlib import Path

import pytest
import yaml

from assay.errors import ParamsError
from assay.files import replace_file
from assay.params import flatten, load_params
from assay.params_edit import edit_params

REAL = Path(__file__).parent.parent / "params.yaml"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "params.yaml"
        path.write_bytes(text.encode())
        return path

    return write


def changed_lines(diff):
    lines = diff.splitlines()[2:]
    return [line[1:] for line in lines if line[0] == "-"], [line[1:] for line in lines if line[0] == "+"]


def load_edited(path, values):
    """Edit, save as a caller does, and read back."""
    text, _ = edit_params(path, values)
    replace_file(path, text.encode())
    return load_params(path)


def test_only_the_changed_lines_of_the_real_file_differ():
    values = {
        "train.dropout_prob": "0.5",
        "train.l1": "1e-05",
        "model.channels": "[16, 32, 64]",
        "train.optimizer": '{"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}',
        "train.early_stopping": "null",
        "schedule.cron": '"30 3 * * *"',
    }
    text, diff = edit_params(REAL, values)
    before, after = changed_lines(diff)
    assert after == [
        "  channels: [16, 32, 64]    # one conv3x3 + pool for each",
        "  optimizer: {kind: sgd, learning_rate: 0.05, momentum: 0.9}           # or sgd, adam",
        "  dropout_prob: 0.5",
        "  l1: 1e-05                 # x sum of |weight|; biases and norms are left alone",
        "  early_stopping: null                                                 # or null",
        '  cron: "30 3 * * *"        # minute, hour, day of month, month, day of week',
    ]
    assert len(before) == len(after)
    old = REAL.read_text()
    assert [line for line in old.splitlines() if line not in before] == [
        line for line in text.splitlines() if line not in after
    ]


@pytest.mark.parametrize("dotted", sorted(flatten(load_params(REAL))))
def test_every_parameter_can_be_written_out(write, dotted):
    old = load_params(REAL)
    value = flatten(old)[dotted]
    before, after = changed_lines(edit_params(REAL, {dotted: json.dumps(value)})[1])
    assert len(before) <= 1  # a line in flow style gets a key that it lacked
    assert len(after) <= 3
    path = write(REAL.read_text())
    assert load_edited(path, {dotted: json.dumps(value)}) == old


def test_setting_a_value_that_is_there_changes_nothing(write):
    path = write("train:\n    l2:   0.00010   # as people write it\n")
    assert edit_params(path, {"train.l2": "0.0001"}) == (path.read_text(), "")


def test_edits_equal_overrides():
    values = {"train.num_epochs": "3", "train.optimizer.kind": '"sgd"', "train.optimizer.momentum": "0.5"}
    text, _ = edit_params(REAL, values)
    wanted = load_params(REAL, [f"{dotted}={raw}" for dotted, raw in values.items()])
    assert yaml.safe_load(text)["train"]["optimizer"] == {"kind": "sgd", "momentum": 0.5}
    assert wanted.train.optimizer.momentum == 0.5


def test_missing_sections_and_keys_are_added(write):
    path = write("train:\n  seed: 1   # mine\n\nmodel:\n  kind: cnn\n# the end\n")
    values = {
        "train.l2": "0.001",
        "ablation.factors": '{"train.dropout_prob": [0.0, 0.5], "train.l1": [1e-05]}',
        "ablation.num_seeds": "5",
    }
    text, diff = edit_params(path, values)
    assert changed_lines(diff) == (
        [],
        [
            "  l2: 0.001",
            "",
            "ablation:",
            "  factors: {train.dropout_prob: [0.0, 0.5], train.l1: [1e-05]}",
            "  num_seeds: 5",
        ],
    )
    assert text.startswith("train:\n  seed: 1   # mine\n  l2: 0.001\n\nmodel:\n")
    params = load_edited(path, values)
    assert params.ablation.factors == {"train.dropout_prob": (0.0, 0.5), "train.l1": (1e-05,)}


@pytest.mark.parametrize("raw", ["1e-05", "1e-08", "0.001", "3.5", "10", "0.1", "1.5e-07"])
def test_floats_read_back_equal(write, raw):
    path = write("train: {l2: 0.0}   # keep\n")
    assert load_edited(path, {"train.l2": raw}).train.l2 == float(raw)
    assert path.read_text() == f"train: {{l2: {raw}}}" + " " * max(2, 3 - len(raw) + 3) + "# keep\n"


@pytest.mark.parametrize(
    ("before", "values", "after"),
    [
        ("train:\n  l1: 0.0 # x\n", {"train.l1": "0.25"}, "train:\n  l1: 0.25 # x\n"),
        ("train:\n  l1: 0.0", {"train.l1": "1"}, "train:\n  l1: 1"),
        ("train:\n  l1: 0.0", {"train.l2": "1"}, "train:\n  l1: 0.0\n  l2: 1\n"),
        ("train:\n", {"train.l2": "1"}, "train: {l2: 1}\n"),
        ("train:   # soon\n", {"train.l2": "1"}, "train: {l2: 1}  # soon\n"),
        ("", {"train.l2": "1"}, "train:\n  l2: 1\n"),
        ("# nothing yet", {"train.l2": "1"}, "# nothing yet\ntrain:\n  l2: 1\n"),
        ("{}\n", {"train.l2": "1"}, "{train: {l2: 1}}\n"),
        ("train: {seed: 3}      # x\n", {"train.l2": "0.5"}, "train: {seed: 3, l2: 0.5}  # x\n"),
        ("train: {seed: 3,}\n", {"train.l2": "1"}, "train: {seed: 3, l2: 1}\n"),
        ("train:\r\n  l1: 0.0\r\n", {"train.l2": "1"}, "train:\r\n  l1: 0.0\r\n  l2: 1\r\n"),
        ("registry:\n  experiment: 'mine'\n", {"registry.experiment": '"two"'}, "registry:\n  experiment: 'two'\n"),
        ("registry:\n  experiment: a\n", {"registry.experiment": '"no"'}, 'registry:\n  experiment: "no"\n'),
        (
            "model:\n  channels:\n    - 8\n    - 16  # wide\n  hidden_units: 9\n",
            {"model.channels": "[4, 8, 16]"},
            "model:\n  channels:\n    - 4\n    - 8\n    - 16  # wide\n  hidden_units: 9\n",
        ),
        (
            "train:\n    early_stopping:     # when\n        metric: val_loss\n        patience_epochs: 3  # few\n"
            "    l1: 0.0\n",
            {"train.early_stopping": "null"},
            "train:\n    early_stopping: null     # when\n    l1: 0.0\n",
        ),
        (
            "train:\n  optimizer:\n    kind: adamw     # which\n    weight_decay: 0.1\n    # the peak\n"
            "    learning_rate: 0.1  # high\n\n  l1: 0.0\n",
            {"train.optimizer": '{"kind": "sgd", "learning_rate": 0.05, "nesterov": true}'},
            "train:\n  optimizer:\n    kind: sgd       # which\n    # the peak\n    learning_rate: 0.05  # high\n"
            "    nesterov: true\n\n  l1: 0.0\n",
        ),
    ],
)
def test_any_layout_stays(write, before, values, after):
    path = write(before)
    text, diff = edit_params(path, values)
    assert text == after
    assert diff
    assert path.read_bytes().decode() == before
    replace_file(path, text.encode())
    assert edit_params(path, values)[1] == ""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train.dropout_prob": "1.4"}, "train.dropout_prob=1.4 in params.yaml: must be in"),
        ({"train.dropout": "0.5"}, "Did you mean train.dropout_prob"),
        ({"train.dropout_prob": "half"}, "train.dropout_prob=half: is no JSON value"),
        ({"train.l2": "NaN"}, "train.l2=NaN: is no JSON value"),
        ({"train.": "1"}, "'train.': is no params path"),
        ({"kind": '"x"'}, "cannot be set"),
    ],
)
def test_bad_values_are_refused(values, said):
    with pytest.raises(ParamsError, match="^.*" + said.replace(".", r"\.").replace("?", r"\?")):
        edit_params(REAL, values)


def test_what_would_change_something_else_is_refused(write):
    shared = "train:\n  l1: &small 0.001\n  l2: *small\n"
    with pytest.raises(ParamsError, match=r"params.yaml:3: train.l2 is an alias"):
        edit_params(write(shared), {"train.l2": "0.5"})
    with pytest.raises(ParamsError, match="cannot be set"):
        edit_params(write(shared), {"train.l1": "0.5"})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match="cannot be read"):
        edit_params(tmp_path / "params.yaml", {"train.l2": "1"})


def test_the_kind_comes_first(write):
    path = write("train:\n  optimizer: {kind: adamw}  # or sgd\n")
    text, _ = edit_params(path, {"train.optimizer": '{"beta1": 0.8, "kind": "adam"}'})
    assert "  optimizer: {kind: adam, beta1: 0.8}  # or sgd\n" in text
