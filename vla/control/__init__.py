"""A robot in the rollout loop: time, safety and recording wrap its world; inference runs beside the loop.

arm          a world of one that can also `send`, `hold` and `sense` (envs/robot)
Paced(arm)   a step takes one control period, measured on the monotonic clock
Safe(...)    no action passes that should not, and every fault ends in a hold
Recorded()   keeps what happened
"""
