"""The simulated robot and its keys in LeRobot's registry: `--robot.type=playtable`, `--teleop.type=playtable_keys`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.robots.config import RobotConfig
from lerobot.teleoperators.config import TeleoperatorConfig


@dataclass
class Disturbance:
    """What is wrong with a simulated robot's sensors and link. All of it can be changed while it runs.

    latency_ms, jitter_ms: a camera's frame arrives so much later than it was taken, plus an exponential delay of that mean.
    drop: share of the frames that never arrive. noise: grey levels, standard deviation per pixel (a real sensor is never
    still, and that is how a frozen one is told). state_latency_ms: the same for the joints' readings. frozen: every camera
    goes on delivering the same picture. silent: nothing new arrives any more. cut: the link is lost, every call fails.
    """

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    drop: float = 0.0
    noise: float = 1.0
    state_latency_ms: float = 0.0
    frozen: bool = False
    silent: bool = False
    cut: bool = False


@RobotConfig.register_subclass("playtable")
@dataclass(kw_only=True)
class SimulatedPlaytableConfig(RobotConfig):
    """scene: A to D. start: number of the evaluation chain whose start state is set up. sizes: camera -> height and width.

    watchdog_ms: without a command for so long the robot holds by itself, as real arms do. linger_s: how long its process
    stays, holding, after its client left or died. folder: where its memory lies (a temporary folder if not given).
    """

    scene: str = "D"
    start: int = 0
    sizes: dict[str, tuple[int, int]] = field(default_factory=lambda: {"static": (96, 96), "wrist": (96, 96)})
    watchdog_ms: float = 150.0
    linger_s: float = 0.0
    folder: str | None = None
    disturbance: Disturbance = field(default_factory=Disturbance)
    seed: int = 0


@TeleoperatorConfig.register_subclass("playtable_keys")
@dataclass(kw_only=True)
class PlaytableKeysConfig(TeleoperatorConfig):
    """terminal: whose keys are taken; `tty` says what a terminal is called, and `sleep inf` keeps its shell from reading along.

    speed: units of the action that a key is worth. key_s: how long it counts. gripper: the command before space is pressed.
    """

    terminal: str = "/dev/tty"
    speed: float = 0.5
    key_s: float = 0.15
    gripper: float = 1.0
