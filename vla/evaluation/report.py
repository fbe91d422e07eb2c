"""One self-contained HTML page about a run: numbers with intervals, settings, tasks, failures and films. Loads nothing."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from vla.evaluation import language

SHOWN_FAILURES = 300
FORESIGHT_NOTE = (
    "Squared error of the imagined frames over that of the guess that nothing moves, on pixels that do move, in the filmed "
    "chains. Below 1 it is foresight."
)
LANGUAGE_NOTE = (
    "First tasks of the chains, asked for in this run's wording and in held-out words; and swapped: from the same starts, "
    "another task that can be done there is said. A trial ends when the task that was said is done, or the one that was likely "
    "(the chain's own)."
)

Row = Mapping[str, Any]


def render(result: Mapping[str, Any], films: Mapping[int, bytes]) -> str:
    """The page of a run.

    result: {"title", "settings": {name: value}, "made", "summary": from `statistics.summarise`, "chains",
    "timing": {name: number}}.
    films: chain number -> mp4.
    """
    summary = result["summary"]
    parts = [
        _hero(result["title"], summary, result["settings"]),
        section("Success in a row", _in_a_row(summary) + _lengths(result["chains"]), summary["method"]),
        section("Films", _films(result["chains"], films), _film_note(result["settings"])) if films else "",
        section("Foresight", _foresight(summary["foresight"]), FORESIGHT_NOTE) if summary["foresight"] else "",
        section("Language", _language(summary["language"]), LANGUAGE_NOTE) if summary["language"] else "",
        section("Tasks", _tasks(summary["tasks"]), "Attempts are the tasks that were really begun."),
        section("Where chains broke", _failures(result["chains"])),
        section("Settings", pairs(flat(result["settings"]))),
        section("Made", pairs(flat(result["made"]))),
        section("Time", pairs({k: f"{v:.3f}" for k, v in result["timing"].items()}), "Milliseconds of one process."),
    ]
    return page(result["title"], parts)


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of a heading and sections."""
    style = files("vla.evaluation").joinpath("report.css").read_text("utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{''.join(parts)}</body></html>"
    )


def heading(title: str) -> str:
    return f"<header><h1>{escape(title)}</h1></header>"


def section(title: str, body: str, note: str = "") -> str:
    """A part of a page; the note is in words, the body is HTML."""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _hero(title: str, summary: Row, settings: Row) -> str:
    mean = summary["average_length"]
    row = summary["in_a_row"]
    hidden = summary.get("infeasible", ())  # unknown in older results
    impossible = f"; {len(hidden)} chains cannot be done to their end" if hidden else ""
    tiles = [
        ("average length", f"{mean['value']:.2f}", f"{mean['low']:.2f} to {mean['high']:.2f}, of {len(row)}"),
        ("first task", _percent(row[0]["value"]), f"{_percent(row[0]['low'])} to {_percent(row[0]['high'])}"),
        (f"all {len(row)}", _percent(row[-1]["value"]), f"{_percent(row[-1]['low'])} to {_percent(row[-1]['high'])}"),
        ("chains", str(summary["chains"]), f"{sum(t['attempts'] for t in summary['tasks'].values())} tasks begun{impossible}"),
    ]
    cards = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{value}</b><small>{escape(note)}</small></div>'
        for name, value, note in tiles
    )
    facts = " &middot; ".join(escape(str(settings[k])) for k in ("policy", "executor", "wording") if k in settings)
    return f'<header><h1>{escape(title)}</h1><p>{facts}</p><div class="tiles">{cards}</div></header>'


def _bar(rate: Row) -> str:
    """A bar with its interval as a whisker."""
    low, high, value = (100 * rate[k] for k in ("low", "high", "value"))
    return (
        f'<div class="bar"><i style="width:{value:.1f}%"></i>'
        f'<em style="left:{low:.1f}%;width:{max(high - low, 0.3):.1f}%"></em></div>'
    )


def _in_a_row(summary: Row) -> str:
    rows = "".join(
        f"<tr><td>{k} in a row</td><td>{_bar(rate)}</td><td class='n'>{_percent(rate['value'])}</td>"
        f"<td class='n pale'>{_percent(rate['low'])} to {_percent(rate['high'])}</td></tr>"
        for k, rate in enumerate(summary["in_a_row"], 1)
    )
    return f'<table class="bars">{rows}</table>'


def _lengths(chains: Sequence[Row]) -> str:
    counts = Counter(chain["solved"] for chain in chains)
    longest = max(len(chain["tasks"]) for chain in chains)
    most = max(counts.values())
    columns = "".join(
        f'<div><small>{counts[k]}</small><i style="height:{max(100 * counts[k] / most, 1):.0f}px"></i><b>{k}</b></div>'
        for k in range(longest + 1)
    )
    return f'<p class="note">Chains by the number of tasks solved</p><div class="columns">{columns}</div>'


def _tasks(tasks: Mapping[str, Row]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{_bar(t)}</td><td class='n'>{_percent(t['value'])}</td>"
        f"<td class='n pale'>{_percent(t['low'])} to {_percent(t['high'])}</td>"
        f"<td class='n'>{t['successes']} / {t['attempts']}</td>"
        f"<td class='n pale'>{'' if t['mean_steps'] is None else format(t['mean_steps'], '.0f')}</td></tr>"
        for name, t in sorted(tasks.items(), key=lambda item: (item[1]["value"], item[0]))
    )
    head = (
        "<tr><th>task</th><th></th>"
        + "".join(f"<th class='n'>{name}</th>" for name in ("success", "95 %", "solved / tried", "mean steps"))
        + "</tr>"
    )
    return f'<table class="bars">{head}{rows}</table>'


def _failures(chains: Sequence[Row]) -> str:
    failed = [chain for chain in chains if chain["attempts"] and not chain["attempts"][-1]["solved"]]
    if not failed:
        return "<p>No chain broke.</p>"
    rows = "".join(
        f"<tr><td class='n'>{chain['chain']}</td><td class='n'>{len(chain['attempts'])}</td>"
        f"<td>{escape(chain['attempts'][-1]['task'].replace('_', ' '))}"
        f"{'' if chain.get('feasible', True) else ' <small>(this chain cannot be done to its end)</small>'}</td>"
        f"<td>{escape(chain['attempts'][-1]['instruction'])}</td><td class='n'>{chain['attempts'][-1]['steps']}</td></tr>"
        for chain in failed[:SHOWN_FAILURES]
    )
    head = (
        "<tr><th class='n'>chain</th><th class='n'>at task</th><th>task</th><th>instruction</th><th class='n'>steps</th></tr>"
    )
    more = len(failed) - SHOWN_FAILURES
    rest = f'<p class="note">and {more} more, in results.json</p>' if more > 0 else ""
    return (
        f"<details{' open' if len(failed) <= 20 else ''}><summary>{len(failed)} of {len(chains)} chains</summary>"
        f"<table>{head}{rows}</table>{rest}</details>"
    )


def _films(chains: Sequence[Row], films: Mapping[int, bytes]) -> str:
    figures = "".join(_film(chain, films[chain["chain"]]) for chain in chains if chain["chain"] in films)
    return f'<div class="films">{figures}</div>'


def _film(chain: Row, film: bytes) -> str:
    marks = "".join(
        f'<li class="{"good" if a["solved"] else "bad"}">{escape(a["instruction"])} <small>{a["steps"]} steps</small></li>'
        for a in chain["attempts"]
    )
    rest = "".join(f"<li>{escape(task.replace('_', ' '))}</li>" for task in chain["tasks"][len(chain["attempts"]) :])
    source = base64.b64encode(film).decode()
    return (
        f'<figure><video autoplay muted loop controls playsinline src="data:video/mp4;base64,{source}"></video>'
        f"<figcaption><b>Chain {chain['chain']}: {chain['solved']} of {len(chain['tasks'])}</b><ol>{marks}{rest}</ol>"
        "</figcaption></figure>"
    )


def _foresight(table: Mapping[str, Row]) -> str:
    return pairs({c: f"{row['ratio']:.3f} on {row['moving_pixels']:,.0f} moving pixels" for c, row in table.items()})


def _language(table: Mapping[str, Row]) -> str:
    rates = "".join(
        f"<tr><td>{escape(language.SPOKEN[kind])}: did {escape(language.DONE[deed])}</td><td>{_bar(rate)}</td>"
        f"<td class='n'>{_percent(rate['value'])}</td>"
        f"<td class='n pale'>{_percent(rate['low'])} to {_percent(rate['high'])}</td>"
        f"<td class='n'>{table[kind]['trials']} trials</td></tr>"
        for kind, deed, rate in language.rates(table)
    )
    tasks = "".join(
        f"<tr><td>{escape(task.replace('_', ' '))}</td>"
        + "".join(f"<td class='n'>{row[name]}</td>" for name in ("trials", *language.DEEDS))
        + "</tr>"
        for task, row in table["tasks"].items()
    )
    names = "".join(f"<th class='n'>{escape(name)}</th>" for name in ("trials", *language.DONE.values()))
    return (
        f'<table class="bars">{rates}</table><details><summary>Swapped, by the task that was said</summary>'
        f"<table><tr><th>said</th>{names}</tr>{tasks}</table></details>"
    )


def _film_note(settings: Row) -> str:
    steps = settings.get("foresight_steps")
    if not steps:
        return "Both cameras as the world gives them, in real time."
    return (
        f"Left: now. Middle: what the policy imagined {steps} steps before. Right: the real frame of exactly that instant; "
        "the pair stays until the next one is due."
    )


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = "".join(
        f"<tr><td>{escape(str(name).replace('_', ' '))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f'<table class="pairs">{rows}</table>'


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by spaces."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
