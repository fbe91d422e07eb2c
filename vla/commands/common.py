"""What every command shares: composing the config with Hydra, and mistakes told in one sentence.

    @command("train")
    def main(config: DictConfig) -> None: ...

makes `main()` a console script which reads `conf/train.yaml` and the overrides of the command line. A mistake of the
user (UserError, an unknown key or group, a value that is missing or of the wrong kind) is one line "error: ..." on stderr
and exit status 2; Ctrl-C is one line and 130. Anything else is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vla.kinds import require_kinds
from vla.spec import UserError

Main = Callable[[DictConfig], None]


def command(config_name: str) -> Callable[[Main], Callable[[], None]]:
    """Turn a function of a composed config into a console script reading `conf/<config_name>.yaml`."""

    def decorate(main: Main) -> Callable[[], None]:
        @functools.wraps(main)
        def told(config: DictConfig) -> None:
            # Caught inside Hydra's job, because Hydra adds lines of its own to whatever leaves it.
            try:
                require_typed(config)
                require_place(config.get("out"))
                main(config)
            except Exception as error:
                if (sentence := explain(error)) is None:
                    raise
                fail(sentence)

        composed = hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)(told)

        @functools.wraps(main)
        def script() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing in its own words and exiting with 1.
            try:
                composed()
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)
            except Exception as error:
                if (sentence := explain(error)) is None:
                    raise
                fail(sentence)

        return script

    return decorate


def explain(error: BaseException | None) -> str | None:
    """One sentence for a mistake of the user, None for a fault of the program.

    Hydra wraps what a part's constructor raises, so the causes are looked through for a UserError first; another exception
    in a constructor is a fault of that part.
    """
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    for link in chain:
        if isinstance(link, MissingMandatoryValue):
            return f"{link.full_key} has no value: add {link.full_key}=<value> to the command."
    if isinstance(chain[0], HydraException | OmegaConfBaseException) and not isinstance(chain[0], InstantiationException):
        return _in_one_line(str(chain[0]))
    return None


def require_typed(config: DictConfig) -> None:
    """Raises UserError for the first value of the command line that is not of a kind that its key takes (vla/kinds.py).

    What is typed is compared with the same config without it: the same choices of groups, and no values.
    """
    loader, hydra_config = GlobalHydra.instance().config_loader(), HydraConfig.get()
    choices, values = [], []
    for override in OverridesParser.create().parse_overrides(list(hydra_config.overrides.task)):
        group = loader.get_group_options(override.key_or_group) and not isinstance(override.value(), dict)
        if group:
            choices.append(str(override.input_line))
        elif not override.is_delete():
            values.append(override.key_or_group)
    if values:
        require_kinds(config, hydra.compose(hydra_config.job.config_name, choices), values)


def require_place(out: str | None) -> None:
    """Raises UserError unless a folder can be made at `out`, or written into; nothing is made. None and URLs pass."""
    if not out or "://" in out:
        return
    place = Path(out).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise UserError(f"out={out}: {place} is a file, not a folder: choose another out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"out={out}: you may not write in {place}: choose another out, or change the rights.")


def fail(sentence: str) -> NoReturn:
    """Print the sentence on stderr and leave with status 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _in_one_line(message: str) -> str:
    if match := re.match(r"Could not override '([^']+)'", message):
        return f"the config has no key {match[1]!r}: correct its name (add `--cfg job` to see all keys)."
    return " ".join(message.split())
