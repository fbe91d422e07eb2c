"""vla-foresight: how well a policy foresees recorded frames. Leaves results.json, report.html and strips of pictures.

vla-foresight checkpoint=checkpoints/gr1_small data.path=data/play out=outputs/foresight
vla-foresight checkpoint=runs/droid/last data=droid data.path=data/droid out=outputs/droid
"""

from __future__ import annotations

from omegaconf import DictConfig

from vla.commands.common import command
from vla.evaluation.foresight import rows, run, write


@command("foresight")
def main(config: DictConfig) -> None:
    result, strips = run(config)
    write(config.out, result, strips)
    print(result["title"])
    for name, found in rows(result["foresight"]):
        print(f"{name}: {found}")
    print(f"report: {config.out}/report.html")


if __name__ == "__main__":
    main()
