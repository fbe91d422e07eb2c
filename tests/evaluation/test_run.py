import io
import json
import re

import av
import numpy as np
import pytest
from omegaconf import OmegaConf

from vla.evaluation.film import Film
from vla.evaluation.run import merge, run, write
from vla.spec import UserError


def config(**changes):
    plain = {
        "env": {
            "world": {"_target_": "pointworld.PointWorld", "num_worlds": 4, "scene": "A"},
            "benchmark": {"_target_": "pointworld.Benchmark"},
        },
        "policy": {"_target_": "pointworld.PointPolicy"},
        "executor": {"_target_": "vla.executor.RecedingHorizon", "execute": 4},
        **{"checkpoint": None, "override": {}, "cameras": "as_env", "title": None, "split": "validation"},
        **{"chains": 12, "delay_ms": 0, "language": False, "seed": 0, "workers": 1, "videos": 0},
    }
    return OmegaConf.create({**plain, **changes})


@pytest.fixture(scope="module")
def alone():
    return run(config(videos=2))


def test_two_processes_find_the_same(alone):
    result, films = run(config(workers=2, videos=2))
    assert result["chains"] == alone[0]["chains"]
    assert result["settings"] == alone[0]["settings"]
    assert films.keys() == {0, 1}


def test_slices_merge_to_the_whole(alone, tmp_path):
    for name, chains in (("a", "0:5"), ("b", "5:12")):
        write(str(tmp_path / name), *run(config(chains=chains, videos=1)))
    result, films = merge([str(tmp_path / "b"), str(tmp_path / "a")])
    assert result["chains"] == alone[0]["chains"]
    assert films.keys() == {0, 5}
    summary = write(str(tmp_path / "all"), result, films)
    assert summary["chains"] == 12
    assert json.loads((tmp_path / "all" / "results.json").read_text())["chains"] == alone[0]["chains"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"chains": "4:8"}, "chain 4 is in two of the slices"),
        ({"chains": "6:8"}, "chains 5 to 5 are in none"),
        ({"chains": "5:8", "seed": 3}, "seed is 0 in .* but 3 in"),
        ({"chains": "5:8", "split": "heldout"}, "wording is 'validation' in"),
    ],
)
def test_slices_that_do_not_fit_are_refused(tmp_path, other, words):
    write(str(tmp_path / "a"), *run(config(chains="0:5")))
    write(str(tmp_path / "b"), *run(config(**other)))
    with pytest.raises(UserError, match=words):
        merge([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(UserError, match=r"nowhere.results.json cannot be read"):
        merge([str(tmp_path / "a"), "nowhere"])


def test_the_report_says_what_a_score_depends_on_and_loads_nothing(alone, tmp_path):
    write(str(tmp_path), *alone)
    page = (tmp_path / "report.html").read_text()
    for words in ("receding horizon, 4 actions per query", "validation", "seed", "renderer", "PointPolicy", "mujoco"):
        assert words in page
    links = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(links) == 2
    assert all(link.startswith("data:video/mp4;base64,") for link in links)
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<video") == 2
    mean = alone[0]["chains"]
    assert f"{np.mean([c['solved'] for c in mean]):.2f}" in page


def test_exactly_one_policy_is_asked_for():
    for wrong in ({"policy": None}, {"checkpoint": "somewhere"}):
        with pytest.raises(UserError, match="exactly one"):
            run(config(**wrong))


def frames_of(film):
    with av.open(io.BytesIO(film)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_film_shows_what_was_imagined_beside_the_frame_it_was_imagined_for():
    attempts = []
    film = Film(attempts, 2, foresight_steps=3, fps=30)

    def picture(brightness):
        return {camera: np.full((32, 32, 3), brightness, np.uint8) for camera in ("static", "wrist")}

    for step in range(8):
        real = {f"observation.images.{c}": p for c, p in picture(20 * step).items()}
        film.step({**real, "task": "go"}, np.zeros(7), picture(200 + 10 * step) if step % 5 == 0 else None)
    attempts.append({"solved": True})
    shown = frames_of(film.finish())
    panel = [(60 + 100, 120), (60 + 100, 120 + 232), (60 + 100, 120 + 464)]  # inside: now, imagined, what came

    def at(step):
        return [int(shown[step][place].mean()) for place in panel]

    assert at(2)[0] == pytest.approx(40, abs=6)
    assert max(at(2)[1:]) < 40  # nothing has come due
    for step in range(3, 8):  # imagined at step 0 for step 3; the next, of step 5, is due at step 8
        assert at(step) == pytest.approx([20 * step, 200, 60], abs=6)
    assert len(shown) > 8
    pixels = 32 * 32  # all moved from 0 to 60 between steps 0 and 3, and 200 was imagined
    for sums in film.errors.values():
        assert sums.tolist() == [3 * pixels * (200 - 60) ** 2, 3 * pixels * 60**2, pixels]
