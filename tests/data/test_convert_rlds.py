import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla.data.convert.files import Fault
from vla.data.convert.rlds import convert
from vla.data.convert.tfrecord import masked_crc, parse_example, records
from vla.data.store import Dataset, check
from vla.data.windows import Windows
from vla.spec import ACTION, STATE, UserError

NAMES = {"cameras": {"static": "observation/image"}, "state": ["observation/pose", "observation/gripper"], "action": "action"}
EXAMPLE = {"steps/action": np.arange(6, dtype=np.float32), "steps/step": np.array([-1, 2**40]), "id": [b"a", b""]}


def varint(value):
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(features, packed=True):
    pairs = b""
    for name, values in features.items():
        if isinstance(values, list):
            kind, data = 1, b"".join(message(1, v) for v in values)
        elif values.dtype.kind == "f":
            raw = [struct.pack("<f", v) for v in values]
            kind, data = 2, message(1, b"".join(raw)) if packed else b"".join(varint(1 << 3 | 5) + r for r in raw)
        else:
            raw = [varint(int(v)) for v in values]
            kind, data = 3, message(1, b"".join(raw)) if packed else b"".join(varint(1 << 3) + r for r in raw)
        pairs += message(1, message(1, name.encode()) + message(2, message(kind, data)))
    return message(1, pairs)


def record(data):
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", masked_crc(data))


def picture(pixels, form="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def episode(seed, length=6, size=(8, 10)):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (length, *size, 3), np.uint8)
    features = {
        "steps/observation/image": [picture(p) for p in pixels],
        "steps/observation/pose": rng.normal(size=6 * length).astype(np.float32),
        "steps/observation/gripper": rng.integers(0, 2, length),
        "steps/action": rng.normal(size=7 * length).astype(np.float32),
        "steps/language_instruction": [b"open it"] * (length // 2) + [b""] + [b"shut it"] * (length - length // 2 - 1),
        "episode_metadata/file_path": [b"somewhere"],
    }
    return features, pixels


def write(folder, *data):
    folder.mkdir(exist_ok=True)
    (folder / "toy-train.tfrecord-00000-of-00001").write_bytes(b"".join(data))
    return folder


def run(folder, out, **changes):
    return convert(folder, out, **({"control_hz": 5.0, "instruction": "language_instruction"} | NAMES | changes))


def test_the_checksum_is_tensorflows():
    # The first 8 bytes of every record file of the published RLDS sets say how long the record is; this pair is from Bridge's.
    assert masked_crc(struct.pack("<Q", 144_644)) == 2_731_483_020


@pytest.mark.parametrize("packed", [True, False])
def test_examples_are_parsed(packed):
    found = parse_example(example(EXAMPLE, packed))
    assert found.keys() == EXAMPLE.keys()
    np.testing.assert_array_equal(found["steps/action"], EXAMPLE["steps/action"])
    np.testing.assert_array_equal(found["steps/step"], EXAMPLE["steps/step"])
    assert found["id"] == [b"a", b""]


@given(st.data())
def test_damaged_examples_are_faults(data):
    whole = bytearray(example(EXAMPLE))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=5)):
        whole[place] = data.draw(st.integers(0, 255))
    try:
        parse_example(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except Fault:
        return


def test_episodes_are_converted(tmp_path):
    made = [episode(seed, length) for seed, length in enumerate((6, 9))]
    folder = write(tmp_path / "set", *(record(example(features)) for features, _ in made))
    summary = run(folder, tmp_path / "out")
    assert (summary.made, dict(summary.skipped)) == ({"episodes": 2, "frames": 15}, {})
    dataset = check(tmp_path / "out")
    np.testing.assert_array_equal(dataset.images("static", np.arange(15)), np.concatenate([pixels for _, pixels in made]))
    np.testing.assert_array_equal(dataset.vectors[ACTION], np.concatenate([f["steps/action"].reshape(-1, 7) for f, _ in made]))
    np.testing.assert_array_equal(dataset.vectors[STATE][:6, 6], made[0][0]["steps/observation/gripper"])
    found = [(s["start"], s["end"], dataset.instructions[s["instruction"]]) for s in dataset.segments]
    assert found == [(0, 3, "open it"), (4, 6, "shut it"), (6, 10, "open it"), (11, 15, "shut it")]
    assert Windows(dataset, batch_size=2, chunk=2).batch(0)[ACTION].shape == (2, 1, 2, 7)
    assert run(folder, tmp_path / "out").made == summary.made  # all is there
    assert Dataset(tmp_path / "out").digest == dataset.digest
    with pytest.raises(UserError, match="begun with"):
        run(folder, tmp_path / "out", state=[])


def test_damaged_records_are_told_and_skipped(tmp_path):
    good = [record(example(episode(seed)[0])) for seed in range(8)]
    spoilt = bytearray(good[1])
    spoilt[200] ^= 1
    other = {
        "no image": {k: v for k, v in episode(20)[0].items() if "image" not in k},
        "short": episode(21)[0] | {"steps/action": np.zeros(5, np.float32)},
        "nan": episode(22)[0] | {"steps/action": np.full(42, np.nan, np.float32)},
        "text": episode(23)[0] | {"steps/action": [b"a"] * 6},
        "bad picture": episode(24)[0] | {"steps/observation/image": [b"\x89PNG"] * 6},
        "size": episode(25, size=(9, 9))[0],
        "empty": {k: v[:0] for k, v in episode(26)[0].items()},
        "lengths": episode(27)[0] | {"steps/observation/image": episode(27)[0]["steps/observation/image"][:4]},
        "width": episode(28)[0] | {"steps/action": np.zeros(12, np.float32)},
    }
    middle = [record(example(features)) for features in other.values()]
    data = [good[0], bytes(spoilt), *middle, record(b"\x0f\xff"), good[0], good[2], good[3][:-40]]
    summary = run(write(tmp_path / "set", *data), tmp_path / "out")
    name = "toy-train.tfrecord-00000-of-00001 record"
    faults = [
        "does not match its checksum", "lacks observation/image (it has ", "has 5 numbers in action for 6 steps",
        "has a number in action that is not finite", "has no numbers in action", "has a picture in observation/image that",
        "has pictures of another size", "is empty", "has 4 pictures in observation/image for 6",
        "has 2 numbers a step in action", "is no tf.train.Example", f"repeats {name} 0",
    ]  # fmt: skip
    wanted = {f"{name} {i}": fault for i, fault in enumerate(faults, 1)} | {f"{name} 14": "ends within a record"}
    assert summary.skipped.keys() == wanted.keys()
    for place, fault in wanted.items():
        assert summary.skipped[place].startswith(fault), place
    assert check(tmp_path / "out").scenes == [f"{name} 0", f"{name} 13"]

    lost = bytearray(good[0] + good[1])
    lost[len(good[0]) + 3] ^= 1
    (tmp_path / "lost").write_bytes(bytes(lost))
    assert [isinstance(r, Fault) for r in records(tmp_path / "lost")] == [False, True]


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match=r"holds no \*.tfrecord\* files"):
        run(tmp_path, tmp_path / "out")
    folder = write(tmp_path / "set", record(example(episode(0)[0])))
    with pytest.raises(UserError, match=r"lacks joints \(it has action, language_instruction, observation/gripper"):
        run(folder, tmp_path / "out", state="joints")
    assert not (tmp_path / "out").exists()
