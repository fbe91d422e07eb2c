"""Every config in conf/ is built and used for a step, so that a new world, policy or trainer is tested by being there."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import get_method, instantiate
from lerobot_folders import dataset, train
from omegaconf import DictConfig, OmegaConf
from served import Still, serving

import conf
from vla.checkpoint import build_policy
from vla.control.takeover import make_teleoperator
from vla.data.windows import Windows
from vla.policy import Imagining, Policy
from vla.spec import ENVIRONMENT_STATE, IMAGE_PREFIX, STATE
from vla.training.setup import make_accelerator
from vla.training.trainer import Settings

CONF = Path(conf.__file__).parent
COMMANDS = ("collect", "control", "convert", "doctor", "evaluate", "foresight", "pretrain", "serve", "train", "view")
# Pretrained towers that are not on every machine are left out, and what would take minutes on a CPU is cut.
SIGLIP = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GEMMA = {
    "model_type": "gemma", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 300,
}  # fmt: skip
PALIGEMMA = {"vision_config": SIGLIP, "text_config": GEMMA, "projection_dim": 32, "hidden_size": 32}
LIGHTER = {
    "gr1": {"vision": {"weights": None}, "text": {"name": "minilm"}, "history": 2, "micro_batch": 1},
    "f1": {
        "layers": 2, "heads": 2, "head_width": 16, "history": 2, "understanding": {"weights": None, "shape": PALIGEMMA},
        "generation": {"width": 32, "hidden": 32}, "action": {"width": 32, "hidden": 32},
        "tokenizer": {"channels": [32] * 5, "decoder_channels": [32] * 5, "layers": 1, "attention": False},
    },
}  # fmt: skip

# What a policy's loss is made of, by the first part of its config's name.
PARTS = {
    "gr1": {"arm", "gripper", "foresight_static", "foresight_wrist"},
    "f1": {"flow", "foresight_static"},
    "f1_tokenizer": {"pixels", "codes", "psnr", "ssim", "use"},
}


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(command: str, *overrides: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose(command, overrides=list(overrides))


@pytest.fixture(scope="module")
def world():
    made = instantiate(composed("evaluate").env.world, num_worlds=2, _convert_="all")
    yield made
    made.close()


@pytest.fixture
def port(world):
    """Of a server that a remote policy can ask."""
    with serving(Still(world.vla_spec)) as port:
        yield port


@pytest.fixture
def folder(tmp_path):
    """Of a policy that LeRobot saved."""
    return train("act", dataset(tmp_path / "data"), tmp_path / "act", steps=1)


def test_no_group_is_left_out():
    assert {path.name for path in CONF.iterdir() if path.is_dir() and list(path.glob("*.yaml"))} == {
        "adapter", "data", "env", "executor", "experiment", "head", "policy", "robot", "source", "teleop", "tokenizer",
        "trainer", "vision",
    }  # fmt: skip
    assert set(COMMANDS) == {path.stem for path in CONF.glob("*.yaml")} - {"command"}


@pytest.mark.parametrize("name", COMMANDS)
def test_command(name):
    keys = {"serve": ("server.port", 0), "view": ("path", "data"), "doctor": ("path", "data")}
    key, value = keys.get(name, ("out", "somewhere"))
    assert OmegaConf.select(composed(name, f"{key}={value}"), key) == value


# Worlds that live elsewhere need an environment of their own: tests/envs/elsewhere/test_third_party.py and test_calvin.py.
HERE = [name for name in names("env") if name.startswith("playtable")]


@pytest.mark.parametrize("name", HERE)
def test_env(name):
    config = composed("evaluate", f"env={name}").env
    world = instantiate(config.world, num_worlds=2, _convert_="all")
    observation, _ = world.reset(seed=0)
    assert world.observation_space.contains(observation)
    assert {IMAGE_PREFIX + camera for camera in world.vla_spec.cameras} < set(observation)
    assert world.single_action_space.shape == (len(world.vla_spec.action),)
    after, *_ = world.step(world.action_space.sample())
    assert world.observation_space.contains(after)
    assert not np.array_equal(after[STATE], observation[STATE])
    benchmark = instantiate(config.benchmark)
    chain = benchmark.chains()[0]
    start = {"robot_obs": np.tile(chain.robot_obs, (2, 1)), "scene_obs": np.tile(chain.scene_obs, (2, 1))}
    observation, _ = world.reset(options=start)
    np.testing.assert_allclose(observation[ENVIRONMENT_STATE][0], chain.scene_obs, atol=1e-3)
    states = world.states()
    assert not benchmark.solved(chain.tasks[0], states[0], states[0])
    assert all(benchmark.instructions(task, split) for task in chain.tasks for split in ("train", "validation", "heldout"))
    if "play" in config:
        play, rng = instantiate(config.play), np.random.default_rng(0)
        starts = [play.start(rng, scene, {}) for scene in world.scenes]
        world.reset(options={key: np.stack([start[key] for start in starts]) for key in starts[0]})
        task = play.choose(rng, world.states()[0], world.scenes[0], {})
        assert play.instructions(task)
    world.close()


@pytest.mark.parametrize("name", [name for name in names("policy") if "tokenizer" not in name])
def test_policy_acts(name, world, request):
    config = OmegaConf.merge(composed("train", f"policy={name}").policy, LIGHTER.get(name, {}))
    if name == "remote":
        config.url = f"ws://127.0.0.1:{request.getfixturevalue('port')}"
    if name == "lerobot":
        config.path = str(request.getfixturevalue("folder"))
    observation, _ = world.reset(seed=0)
    benchmark = instantiate(composed("evaluate").env.benchmark)
    observation["task"] = [benchmark.instructions(task, "train")[0] for task in benchmark.chains()[0].tasks[:2]]
    torch.manual_seed(0)
    policy = instantiate(config) if config._target_.startswith("envs.") else build_policy(config, world.vla_spec)
    assert isinstance(policy, Policy)
    chunk, memory = policy.act(observation, policy.begin([0, 1]))
    assert chunk.dtype == np.float32
    assert chunk.shape == (2, chunk.shape[1], len(world.vla_spec.action))
    assert np.abs(chunk).max() <= 1
    world.step(chunk[:, 0])
    if isinstance(policy, Imagining):
        frames = policy.foresee(memory)
        assert set() < set(frames) <= set(policy.spec.cameras)
        assert all(frame.dtype == np.uint8 and frame.shape[::3] == (2, 3) for frame in frames.values())


@pytest.mark.parametrize("name", [name for name in names("policy") if name not in ("expert", "remote", "lerobot")])
def test_policy_learns(name, world):
    config = OmegaConf.merge(composed("train", f"policy={name}").policy, LIGHTER.get(name, {}))
    torch.manual_seed(0)
    policy = build_policy(config, world.vla_spec)
    g, size, frames = torch.Generator().manual_seed(0), policy.size, (1, policy.window)
    batch = {
        "observation.state": torch.randn(*frames, 15, generator=g),
        "action": torch.rand(*frames, policy.horizon, 7, generator=g) * 2 - 1,
        "action.mask": torch.ones(*frames, policy.horizon, dtype=torch.bool),
        "frame.mask": torch.ones(frames, dtype=torch.bool),
        "future.mask": torch.ones(frames, dtype=torch.bool),
        "task": ["open the drawer"],
    }
    for key in ("observation", "future"):
        for camera in policy.spec.cameras:
            pixels = torch.randint(0, 256, (*frames, size, size, 3), dtype=torch.uint8, generator=g)
            batch[f"{key}.images.{camera}"] = pixels
    loss, parts = policy.loss(batch)
    loss.backward()
    assert set(parts) >= PARTS.get(name, PARTS[name.split("_")[0]])
    idle = [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in ("head", "vision") for name in names(group)])
def test_part_of_gr1(group, name, world):
    policy = build_policy(composed("train", f"{group}@policy.{group}={name}").policy, world.vla_spec)
    observation, _ = world.reset(seed=0)
    chunk, _ = policy.act({**observation, "task": ["open the drawer"] * 2}, policy.begin([0, 1]))
    assert chunk.shape == (2, policy.horizon, 7)
    assert np.isfinite(chunk).all()


@pytest.mark.parametrize("name", names("adapter"))
def test_adapter(name, world):
    config = composed("train", f"adapter={name}")
    policy = build_policy(config.policy, world.vla_spec)
    observation, _ = world.reset(seed=0)
    observation["task"] = ["open the drawer"] * 2
    before, _ = policy.act(observation, policy.begin([0, 1]))
    whole = sum(p.numel() for p in policy.parameters())
    if config.adapter is not None:
        instantiate(config.adapter).inject(policy)
        assert sum(p.numel() for p in policy.parameters() if p.requires_grad) < 0.01 * whole
    np.testing.assert_array_equal(policy.act(observation, policy.begin([0, 1]))[0], before)


@pytest.mark.parametrize("name", names("executor"))
def test_executor(name):
    executor = instantiate(composed("evaluate", f"executor={name}", "execute=1").executor)
    executor.begin(0)
    assert executor.asks(0)
    executor.give(0, np.full((10, 7), 0.5, np.float32))
    np.testing.assert_allclose(executor.action(0), 0.5)
    assert executor.asks(0)
    assert executor.describe()


@pytest.mark.parametrize("name", names("trainer"))
def test_trainer(name):
    settings = Settings(**OmegaConf.to_container(composed("train", f"trainer={name}", "out=x").trainer, resolve=True))
    assert make_accelerator(settings).device.type in ("cpu", "cuda")


@pytest.mark.parametrize("name", names("source"))
def test_source(name):
    config = composed("convert", f"source={name}")
    keys = set(inspect.signature(get_method(config._target_)).parameters)
    assert set(config) - {"_target_"} <= keys


@pytest.mark.parametrize("name", names("robot"))
def test_robot(name):
    world = instantiate(OmegaConf.load(CONF / "robot" / f"{name}.yaml").world, _convert_="all")
    assert world.single_action_space.shape == (len(world.vla_spec.action),)
    world.close()


@pytest.mark.parametrize("name", names("teleop"))
def test_teleop(name):
    config = OmegaConf.to_container(composed("control", f"teleop={name}", "out=x").teleop)
    device = make_teleoperator(config["device"], config["plugins"])
    assert {row["feature"] for row in config["action"].values()} <= set(device.action_features)


@pytest.mark.parametrize("name", names("data"))
def test_data(name):
    keys = set(composed("train", f"data={name}").data) - {"path"}
    assert keys <= set(inspect.signature(Windows).parameters)
