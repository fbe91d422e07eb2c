"""Feetech STS3215 servos on a pseudo-terminal: what an SO-101 arm's serial port looks like from the computer.

    packet        FF FF id length instruction parameter... checksum         checksum = ~(id + length + ... ) & FF
    answer        FF FF id length error       data...      checksum

Ping (1), read (2), write (3), sync read (0x82) and sync write (0x83), at the STS series' register addresses, little endian.
What is written below address 40 outlives a power cycle only where the servo was unlocked (register 55). A servo with torque
goes to its goal like a first-order lag of limited speed, `droop` ticks below it (a P controller under gravity); without torque
it stays.

`fault` spoils answers: "silent", "checksum", "garbage" (noise instead), "short" (sound, but without data), "late". `missing`
servos never answer. Time is real.
"""

import contextlib
import json
import math
import os
import select
import threading
import time
import tty
from pathlib import Path

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
MODEL = 777
PING, READ, WRITE, SYNC_READ, SYNC_WRITE, EVERYBODY = 1, 2, 3, 0x82, 0x83, 0xFE
LEAST, MOST, OFFSET, TORQUE, GOAL, LOCK, PRESENT = 9, 11, 31, 40, 42, 55, 56
SAVED = 40  # the first address that a power cycle clears
SPEED, LAG_S = 3000.0, 0.05  # ticks a second, seconds


class Servo:
    """One servo, at `position` (ticks of 4096 a turn)."""

    def __init__(self, number, position=2048):
        self.position, self.droop, self.since = float(position), 0.0, time.monotonic()
        self.registers = bytearray(128)
        for address, value in ((3, MODEL), (LEAST, 0), (MOST, 4095), (PRESENT, position), (GOAL, position)):
            self.put(address, value)
        self.registers[0], self.registers[1], self.registers[5], self.registers[LOCK] = 3, 10, number, 1
        self.saved = bytes(self.registers[:SAVED])
        self.goals = []  # every goal that was written

    def word(self, address):
        return int.from_bytes(self.registers[address : address + 2], "little")

    def put(self, address, value):
        self.registers[address : address + 2] = int(value).to_bytes(2, "little")

    def read(self, address, size):
        self.move()
        return bytes(self.registers[address : address + size])

    def write(self, address, data):
        self.move()
        self.registers[address : address + len(data)] = data
        if address < SAVED and not self.registers[LOCK]:
            self.saved = bytes(self.registers[:SAVED])
        if address == GOAL:
            self.goals.append(self.word(GOAL))

    def move(self):
        """Up to now."""
        now = time.monotonic()
        passed, self.since = now - self.since, now
        if self.registers[TORQUE]:
            goal = min(max(self.word(GOAL), self.word(LEAST)), self.word(MOST)) - self.droop
            step = (goal - self.position) * (1 - math.exp(-passed / LAG_S))
            self.position += min(max(step, -SPEED * passed), SPEED * passed)
        self.put(PRESENT, round(self.position))

    def power_cycle(self):
        self.registers[:SAVED] = self.saved
        self.registers[SAVED:] = bytes(len(self.registers) - SAVED)
        self.registers[LOCK] = 1
        self.put(GOAL, round(self.position))


class Bus:
    """A context: `port` is what a SO-101 is given as its port; `servos` by number, from 1."""

    def __init__(self, positions=(2048,) * 6):
        self.servos = {k + 1: Servo(k + 1, p) for k, p in enumerate(positions)}
        self.fault, self.missing, self.spoilt = None, set(), 0
        self.rng = np.random.default_rng(0)

    def __enter__(self):
        self.ours, self.theirs = os.openpty()
        tty.setraw(self.theirs)
        self.port, self.ended = os.ttyname(self.theirs), False
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        return self

    def calibrate(self, folder, name, least=1024, most=3072):
        """What lerobot-calibrate leaves behind: a file, and the same in the servos."""
        rows = {}
        for (k, servo), joint in zip(self.servos.items(), JOINTS, strict=True):
            rows[joint] = {"id": k, "drive_mode": 0, "homing_offset": 0, "range_min": least, "range_max": most}
            servo.put(LEAST, least)
            servo.put(MOST, most)
            servo.saved = bytes(servo.registers[:SAVED])
        Path(folder, f"{name}.json").write_text(json.dumps(rows))

    def __exit__(self, *_):
        self.ended = True
        self.thread.join()
        self.unplug()

    def unplug(self):
        for fd in (self.ours, self.theirs):
            with contextlib.suppress(OSError):
                os.close(fd)

    def serve(self):
        heard = b""
        while not self.ended:
            if not select.select([self.ours], [], [], 0.05)[0]:
                continue
            heard += os.read(self.ours, 4096)
            while (
                (start := heard.find(b"\xff\xff")) >= 0
                and len(heard) >= start + 4
                and len(heard) >= start + 4 + heard[start + 3]
            ):
                heard = heard[start:]
                packet, heard = heard[2 : 4 + heard[3]], heard[4 + heard[3] :]
                if packet[-1] == checksum(packet[:-1]):
                    self.obey(packet[0], packet[2], packet[3:-1])

    def obey(self, number, instruction, given):
        if instruction == SYNC_READ:
            address, size, *asked = given
            for k in asked:
                self.answer(k, address, size)
        elif instruction == SYNC_WRITE:
            address, size, rows = given[0], given[1], given[2:]
            for k in range(0, len(rows), size + 1):
                if rows[k] in self.servos and rows[k] not in self.missing:
                    self.servos[rows[k]].write(address, rows[k + 1 : k + 1 + size])
        elif number in self.servos and number not in self.missing:
            if instruction == WRITE:
                self.servos[number].write(given[0], given[1:])
            if instruction == READ:
                self.answer(number, *given)
            else:
                self.send(number, b"")

    def answer(self, number, address, size):
        if number in self.servos and number not in self.missing:
            self.send(number, self.servos[number].read(address, size))

    def send(self, number, data):
        if self.fault is not None:
            self.spoilt += 1
        if self.fault == "short":
            data = b""
        if self.fault == "late":
            time.sleep(0.06)
        packet = bytes([number, len(data) + 2, 0]) + data
        packet = b"\xff\xff" + packet + bytes([checksum(packet) ^ (self.fault == "checksum")])
        if self.fault == "garbage":
            packet = self.rng.bytes(len(packet))
        if self.fault != "silent":
            os.write(self.ours, packet)


def checksum(packet):
    return ~sum(packet) & 0xFF
