"""CALVIN's own code without ours, for comparison: run by CALVIN's interpreter, asked and answering in msgpack.

    python -I genuine_calvin.py CHECKOUT < {"what": ..., ...}

what: "play" takes robot_obs, scene_obs and actions, and gives what each step observed (states, both pictures of the last);
"judge" takes pairs of infos, and gives the tasks that the oracle sees done between them.
"""

import sys

import msgpack
import numpy as np


def configuration(checkout):
    import hydra

    changes = ["scene=calvin_scene_D", "cameras=static_and_gripper", "use_vr=false", "env.use_egl=false"]
    changes += ["env.use_scene_info=true", "hydra/job_logging=default", "hydra/hydra_logging=default"]
    with hydra.initialize_config_dir(checkout + "/conf", version_base=None):
        return hydra.compose("config_data_collection", overrides=changes)


def play(checkout, robot_obs, scene_obs, actions):
    import hydra

    env = hydra.utils.instantiate(configuration(checkout).env)
    observation = env.reset(robot_obs=np.array(robot_obs), scene_obs=np.array(scene_obs))
    seen = [observation]
    cameras, env.cameras = env.cameras, []  # pictures are slow
    for k, action in enumerate(actions):
        if k == len(actions) - 1:
            env.cameras = cameras
        observation, _, _, _ = env.step(np.array(action))
        seen.append(observation)
    return {
        "state": [np.float32(each["robot_obs"]).tolist() for each in seen],
        "scene": [np.float32(each["scene_obs"]).tolist() for each in seen],
        "static": np.asarray(observation["rgb_obs"]["rgb_static"], np.uint8).tobytes(),
        "wrist": np.asarray(observation["rgb_obs"]["rgb_gripper"], np.uint8).tobytes(),
    }


def judge(checkout, pairs):
    import hydra
    from omegaconf import OmegaConf

    oracle = hydra.utils.instantiate(OmegaConf.load(checkout + "/conf/tasks/new_playtable_tasks.yaml"))
    return {"done": [sorted(oracle.get_task_info(start, end)) for start, end in pairs]}


def main(checkout):
    sys.path.insert(0, checkout)
    request = msgpack.unpackb(sys.stdin.buffer.read())
    answer = {"play": play, "judge": judge}[request.pop("what")](checkout, **request)
    sys.stdout.buffer.write(b"ANSWER" + msgpack.packb(answer))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
