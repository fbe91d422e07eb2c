"""Instructions that the policy refuses are told and left out, those given at the start and those that are typed."""

import json
import os
from pathlib import Path

import numpy as np
from test_control_run import child, config, ended_well, when_moving  # noqa: F401
from toy_arm import ARMS

from vla.control.run import run


def events(settings, name):
    lines = Path(settings.out, "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_what_is_refused_is_not_acted_on(config):  # noqa: F811
    config.policy._target_ = "refusing_policy.Discerner"
    config.instructions, config.seconds, config.refuse = ["open the fridge", "one", "close the fridge", "two"], 0.6, True
    table = run(config, keyboard=None)
    dataset = ended_well(config, table)
    assert table["ended"] == "all instructions are done"
    assert table["fault"] is None
    assert [event["sentence"] for event in events(config, "instruction")] == ["one", "two"]
    refused = events(config, "refused")
    assert [event["sentence"] for event in refused] == ["open the fridge", "close the fridge"]
    assert refused[0]["why"] == "'open the fridge' is refused: say 'one'."
    assert dataset.instructions == ["", "one", "two"]


def test_what_is_typed_is_judged_too(config):  # noqa: F811
    reading, writing = os.pipe()
    config.policy._target_ = "refusing_policy.Discerner"
    config.refuse, config.seconds = True, 2.0
    when_moving(lambda: os.write(writing, b"lift the fridge\ntwo\n"))
    run(config, keyboard=reading)
    assert [event["sentence"] for event in events(config, "refused")] == ["lift the fridge"]
    assert {event["sentence"] for event in events(config, "instruction")} == {"one", "two"}


def test_one_word_switches_it_off(config):  # noqa: F811
    config.policy._target_ = "refusing_policy.Discerner"
    config.instructions, config.seconds = ["open the fridge"], 0.4
    table = run(config, keyboard=None)
    assert table["ended"] == "all instructions are done"
    assert events(config, "refused") == []
    assert any(not isinstance(command, str) and np.any(command) for command in ARMS[-1].log)
