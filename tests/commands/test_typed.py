"""Values of a wrong kind on the command line are told by the real commands before any work; what is documented is taken."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException

from vla.commands.common import command

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(
    r"(?:vla-|-m vla\.commands\.)(\w+)((?:[ ]+(?:'[^'\n]+=[^'\n]+'|[^\s`'=]+=[^\s`;,:)]*(?:,[^\s`;:)]+)*))+)"
)  # and its overrides
COMMANDS = ("collect", "control", "convert", "doctor", "evaluate", "foresight", "pretrain", "serve", "train", "view")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a console script, or `body` in its place; gives (status, stderr)."""

    def run(name, *overrides, body=None):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [f"vla-{name}", *overrides])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        try:
            (command(name)(body) if body else importlib.import_module(f"vla.commands.{name}").main)()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("train data.path=x seed=x", "seed=x is text, but seed takes a whole number: write seed=0, say."),
        ("train data.path=x trainer.steps=abc", "trainer.steps takes a whole number or null: write trainer.steps=20000, say."),
        ("train data.path=x trainer.batch_size=1.5", "takes a whole number: write trainer.batch_size=96, say."),
        ("train data.path=x trainer.minutes=long", "trainer.minutes takes a number or null"),
        ("train data.path=x trainer.compile=1", "trainer.compile takes true or false"),
        ("train data.path=x data.holdout=x", "data.holdout takes a whole number: write data.holdout=20, say."),
        ("train data.path=x data.max_frames=all", "data.max_frames takes a whole number or null"),
        ("train data.path=x policy.width=big", "policy.width=big is text"),
        ("train data.path=x policy.sequence=long", "policy.sequence takes a whole number or null"),
        ("train data.path=x policy.loss.arm=heavy", "policy.loss.arm takes a number"),
        ("train data.path=x policy.foresight.decoder.layers=two", "policy.foresight.decoder.layers takes a whole number"),
        ("train data.path=x policy=f1_small policy.foresight.scales=some", "takes a whole number or null"),
        ("train data.path=x head@policy.head=flow policy.head.steps=few", "policy.head.steps takes a whole number: write"),
        ("train data.path=x adapter=lora adapter.rank=low", "adapter.rank takes a whole number: write adapter.rank=1, say."),
        ("pretrain data.path=2024", "data.path takes text or a list: write data.path=\"'2024'\", say."),
        ("collect frames=abc", "frames=abc is text, but frames takes a whole number: write frames=500000, say."),
        ("collect frames=1e6", "write frames=1000000, say."),
        ("collect manner.tasks=many", "manner.tasks takes a list"),
        ("collect manner.tasks=[1,b]", "manner.tasks.1=b is text"),
        ("collect env.world.num_worlds=x", "env.world.num_worlds takes a whole number: write env.world.num_worlds=12, say."),
        ("evaluate policy=expert chains=1.5", "chains=1.5 is a number, but chains takes a whole number or text"),
        ("evaluate policy=expert execute=often", "execute takes a whole number"),
        ("evaluate policy=expert delay_ms=short", "delay_ms takes a number"),
        ("evaluate policy=expert env.world.cameras.static=[a,b]", "env.world.cameras.static.0=a is text"),
        ("evaluate policy=expert env.world.cameras=small", "env.world.cameras takes a group of keys"),
        ("evaluate merge=runs/a", "merge takes a list or null: write merge=[runs/a], say."),
        ("evaluate policy=remote policy.timeout_s=soon", "policy.timeout_s takes a number"),
        ("control seconds=long", "seconds takes a number: write seconds=12, say."),
        ("control robot.world.control_hz=fast", "robot.world.control_hz takes a number: write robot.world.control_hz=30, say."),
        ("control instructions='open the drawer'", "instructions takes a list: write"),
        ("control robot.safety.frozen_s=no", "robot.safety.frozen_s takes a number or null"),
        ("control robot.safety.limits.speed.tcp_x=slow", "robot.safety.limits.speed.tcp_x takes a number"),
        ("convert path=x fps=fast", "fps=fast is text, but fps takes a number: write fps=10, say."),
        ("convert source=calvin path=x everything=1", "everything takes true or false"),
        ("foresight checkpoint=x data.path=x windows=x", "windows takes a whole number: write windows=400, say."),
        ("serve checkpoint=x server.port=x", "server.port takes a whole number: write server.port=8000, say."),
        ("serve checkpoint=x threads=x", "threads takes a whole number"),
        ("view path=x episodes=3", "episodes takes a list or null"),
        ("doctor checkpoint=7", "checkpoint takes text or null: write checkpoint=\"'7'\", say."),
    ],
)  # fmt: skip
def test_a_wrong_kind_is_one_sentence_before_any_work(run, tmp_path, typed, words):
    name, *overrides = shlex.split(typed)
    place = ["out=made"] if name not in ("serve", "view", "doctor") else []
    status, said = run(name, *overrides, *place)
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("error: ")
    assert words in said
    assert [path.name for path in tmp_path.iterdir()] in ([], ["outputs"])  # Hydra's own notes


def test_an_out_that_is_a_number(run):
    assert run("collect", "out=2024") == (
        2,
        "error: out=2024 is a whole number, but out takes text: write out=\"'2024'\", say.\n",
    )
    assert run("collect", "out='2024'", body=lambda config: None) == (0, "")


TAKEN = [
    "collect out=a learner=null manner.noisy=1 execute=2 env.world.scene=[A,B]",
    "control delay_ms=12.5 seconds=2 robot.world.robot.cameras.static.index_or_path=/dev/video0 robot=so101 "
    "'instructions=[open the drawer]'",
    "control robot.check=null robot.safety.frozen_s=null robot.safety.limits.speed.tcp_x=1 checkpoint=null policy=remote "
    "policy.token=null",
    "convert path=a out=b annotations=[a.json,b.json] source=videos longest=3 fps=15",
    "convert source=rlds path=a out=b state=[a,b] action=c",
    "doctor path=[a,b]",
    "evaluate policy=expert out=a chains=250:500 delay_ms=33.4 seed=3 '~env.world.cameras.wrist' +env.world.leash=[inf,inf]",
    "evaluate checkpoint=a out=b env.world.cameras.static=[64,64] +override={flow:{steps:1}} title=null",
    "foresight checkpoint=a out=b data.path=[a,b] data.max_frames=100",
    "pretrain experiment=f1_stage1 data.path=a out=b policy.foresight.scales=4",
    "train data.path=a out=b policy=f1_small policy.foresight.scales=null data.memory_gb=2",
    "train data.path=a out=b trainer.clip=null trainer.learning_rate=1 trainer.steps=null trainer.minutes=2.5",
    "train data.path=a out=b trainer=watched trainer.evaluation.chains=0:4 trainer.wandb={project:vla} adapter=lora "
    "adapter.layers=[trunk] adapter.alpha=2.5 init_from=c trainer.validate_every=null trainer.picture_every=null",
    "train data.path=a out=b policy=gr1 policy.vision.weights=null policy.sequence=12 policy.head.hidden=[]",
    "train data.path=a out=b trainer.steps='${seed}'",
    "view path=a episodes=[0,7]",
]


@pytest.mark.parametrize("typed", TAKEN)
def test_what_a_key_also_takes(run, typed):
    name, *overrides = shlex.split(typed)
    assert run(name, *overrides, body=lambda config: None) == (0, "")


def documented():
    """Commands that the README, the configs and the commands themselves show, as (name, overrides)."""
    files = [ROOT / "README.md", *(ROOT / "conf").rglob("*.yaml"), *(ROOT / "vla/commands").glob("*.py")]
    for path in files:
        for name, rest in COMMAND.findall(path.read_text().replace("\\\n", " ")):
            if name in COMMANDS:
                yield name, tuple(shlex.split(re.sub(r"<[^>]*>|\.\.\.", "somewhere", rest.rstrip(". "))))


def table():
    """The README's overrides by themselves, in the backticks before what they do."""
    rows = re.findall(r"^\| `([^`|]*=[^`|]*)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    return sorted({re.sub(r"\.\.\.", "somewhere", row) for row in rows if not row.startswith("vla-")})


def composes(name, overrides):
    try:
        with initialize_config_module("conf", version_base="1.3"):
            compose(name, list(overrides))
    except HydraException:
        return False
    return True


def needs(name, overrides):
    given = {one.split("=")[0] for one in overrides}
    return [f"{key}=somewhere" for key in (["out"] if name not in ("serve", "view", "doctor") else []) if key not in given]


@pytest.mark.parametrize(("name", "overrides"), sorted(set(documented())), ids=lambda value: str(value))
def test_documented_commands_are_taken(run, name, overrides):
    if "robot=mine" in overrides:
        overrides = tuple(one for one in overrides if one != "robot=mine")  # the reader's own file
    assert run(name, *overrides, *needs(name, overrides), body=lambda config: None) == (0, "")


@pytest.mark.parametrize("row", table())
def test_documented_overrides_are_taken(run, row):
    overrides = shlex.split(row)
    name = next(name for name in ("evaluate", "train", "control", "serve", "collect") if composes(name, overrides))
    assert run(name, *overrides, *needs(name, overrides), body=lambda config: None) == (0, "")


def test_enough_was_found_documented():
    assert len(set(documented())) > 30
    assert len(table()) > 15
