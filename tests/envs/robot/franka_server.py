"""A Franka controller to test against, in a process of its own: franky-sim, which speaks libfranka's protocol on loopback.

    python franka_server.py [hostname]      says "ready <hostname>" once it listens

The simulator knows no errors. Here SIGUSR1 causes a reflex, as a collision does on a real arm: the motion is aborted, the
state says which error it is, and nothing moves until the client has asked for recovery. SIGUSR2 lets
recovery be refused, and the next one be granted again.

The simulator also smooths the velocity that it says it was commanded, which a real controller knows exactly. A motion that
replaces another begins with that velocity, and would overshoot by half of its way. Here it is not smoothed.
"""

import signal
import sys

import franky_sim.base_simulator
import franky_sim.simulation_server
from franky_sim import SimulationServer
from franky_sim.franka_robot_protocol import (
    AutomaticErrorRecoveryCommand,
    AutomaticErrorRecoveryStatus,
    BaseCommand,
    MoveCommand,
    MoveStatus,
    RobotCommand,
    RobotMode,
)
from franky_sim.franka_robot_server import FrankaRobotServer
from franky_sim.mujoco_simulator import MujocoSimulator
from franky_sim.simulation_server import LocalHostnames

CARTESIAN_REFLEX = 7  # its place among libfranka's 41 errors


class Controller(FrankaRobotServer):
    reflex = stubborn = False

    @property
    def robot_state(self):
        state = super().robot_state
        if not self.reflex:
            return state
        errors = tuple(k == CARTESIAN_REFLEX for k in range(41))
        return state.replace(robot_mode=RobotMode.kReflex, errors=errors, reflex_reason=errors)

    def process_commands(self):
        motion = self.current_motion_id
        if self.reflex and motion:
            self.stop_motion(send_preemption_signal=False)
            self.send_state()
            BaseCommand.send_response(self._tcp_socket, RobotCommand.kMove, motion, MoveStatus.kReflexAborted)
            self.reset_current_motion_id()
        super().process_commands()


def move(command, server):
    if server.reflex:
        command.reply(MoveStatus.kCommandNotPossibleRejected)
    else:
        accepted(command, server)


def recover(command, server):
    if server.stubborn:
        command.reply(AutomaticErrorRecoveryStatus.kManualErrorRecoveryRequiredRejected)
    else:
        server.reflex = False
        command.reply(AutomaticErrorRecoveryStatus.kSuccess)


accepted, MoveCommand.handle = MoveCommand.handle, move
AutomaticErrorRecoveryCommand.handle = recover
franky_sim.simulation_server.FrankaRobotServer = Controller
for tracker in (franky_sim.base_simulator.FiniteDifferenceTracker, franky_sim.base_simulator.PoseDerivativeTracker):
    tracker.__init__.__defaults__ = (0.0,)  # the weight of the past

if __name__ == "__main__":
    with MujocoSimulator() as simulator:
        robot = simulator.add_robot()
        with SimulationServer(simulator, sys.argv[1:] or LocalHostnames()) as server:
            (controller,) = server.robot_servers
            signal.signal(signal.SIGUSR1, lambda *_: setattr(controller, "reflex", True))
            signal.signal(signal.SIGUSR2, lambda *_: setattr(controller, "stubborn", not controller.stubborn))
            print("ready", robot.hostname, flush=True)
            server.run_forever()
