"""vla-evaluate: play a benchmark's chains with a policy and leave results.json, report.html and films.

vla-evaluate checkpoint=checkpoints/gr1_small out=outputs/abc_d
vla-evaluate policy=expert chains=100 out=outputs/expert
vla-evaluate checkpoint=checkpoints/gr1_small chains=200 language=true out=outputs/language
vla-evaluate merge=[outputs/first,outputs/second] out=outputs/all
"""

from __future__ import annotations

from omegaconf import DictConfig

from vla.commands.common import command
from vla.evaluation.language import DONE, SPOKEN, rates
from vla.evaluation.run import merge, run, write


@command("evaluate")
def main(config: DictConfig) -> None:
    result, films = merge(list(config.merge)) if config.merge else run(config)
    summary = write(config.out, result, films)
    mean = summary["average_length"]
    print(f"{result['title']}: {summary['chains']} chains; {result['settings']['executor']}; seed {result['settings']['seed']}")
    print(f"average length {mean['value']:.3f}  [{mean['low']:.3f}, {mean['high']:.3f}]")
    if summary["infeasible"]:
        print(f"{len(summary['infeasible'])} of the chains cannot be done to their end, and count: {summary['infeasible']}")
    for k, rate in enumerate(summary["in_a_row"], 1):
        print(f"{k} in a row {100 * rate['value']:6.1f} %  [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]")
    for camera, row in summary["foresight"].items():
        print(f"foresight, {camera}: error {row['ratio']:.3f} of nothing-moves on moving pixels (filmed chains)")
    for kind, deed, rate in rates(summary["language"]):
        interval = f"[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
        print(f"{SPOKEN[kind]}: did {DONE[deed]} {100 * rate['value']:.1f} %  {interval}")
    times = result["timing"]
    print(f"{times['all_ms_per_step']:.2f} ms per control step, {times['policy_ms_per_query']:.2f} ms per query of the policy")
    print(f"report: {config.out}/report.html")


if __name__ == "__main__":
    main()
