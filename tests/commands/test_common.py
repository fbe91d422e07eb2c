"""A mistake on the command line is one sentence and status 2; a fault of the program keeps its traceback."""

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vla.commands.common import command, explain
from vla.spec import UserError


def build_with_mistake():
    raise UserError("The colour is 'blau': use 'blue'.")


def build_with_fault():
    raise ValueError("a fault")


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a console script made of `body` with these overrides; gives (status, stderr)."""

    def run(body, *overrides):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["vla-train", *overrides])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        try:
            command("train")(body)()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def test_runs_with_overrides(call):
    seen = []
    assert call(lambda config: seen.append(config.out), "out=runs/a") == (0, "")
    assert seen == ["runs/a"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("ouut=3",), "no key 'ouut'"),
        (("policy=of_nobody",), "of_nobody"),
        (("out=[",), "no viable alternative"),
        ((), "out has no value: add out=<value>"),
    ],
)
def test_bad_command_line_is_one_sentence(call, overrides, words):
    status, said = call(lambda config: config.out, *overrides)
    assert status == 2
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("out", "place"), [("file", "file"), ("file/deeper/still", "file")])
def test_a_place_that_cannot_be_written_is_told_before_any_work(call, tmp_path, out, place):
    (tmp_path / "file").write_text("mine")
    status, said = call(lambda config: pytest.fail("it went to work"), f"out={tmp_path / out}")
    assert status == 2
    assert said == f"error: out={tmp_path / out}: {tmp_path / place} is a file, not a folder: choose another out.\n"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_rights_is_told_before_any_work(call, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # rights do not hold root back
    status, said = call(lambda config: pytest.fail("it went to work"), f"out={tmp_path}/a/b")
    assert status == 2
    assert f"you may not write in {tmp_path}" in said
    assert not (tmp_path / "a").exists()


def test_user_error_from_main_or_from_a_part(call):
    def main(config):
        instantiate(OmegaConf.create({"_target_": f"{__name__}.build_with_mistake"}))

    assert call(main) == (2, "error: The colour is 'blau': use 'blue'.\n")


def test_faults_are_not_hidden(call):
    def main(config):
        instantiate(OmegaConf.create({"_target_": f"{__name__}.build_with_fault"}))

    with pytest.raises(InstantiationException, match="a fault"):
        call(main)
    assert explain(ValueError("x")) is None


def test_interrupt(call):
    def main(config):
        raise KeyboardInterrupt

    assert call(main) == (130, "interrupted\n")
