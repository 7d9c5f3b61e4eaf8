"""Look up a strategy by name, among the plugins' strategies and PEFT's methods."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from medgraft.errors import PluginError
from medgraft.plugin import PluginManager
from medgraft.strategies.base import Strategy


def get_strategy(name: str, options: Mapping[str, JsonValue] | None = None, *, plugins: PluginManager) -> Strategy:
    """The strategy called `name` (or `peft:<METHOD>`), with `options` as in `--set strategy.KEY=VALUE`.

    ConfigError for a key that is neither a field of Strategy nor one of the PEFT method's config.
    """
    from medgraft.strategies.peft_methods import check_options

    strategy = recorded_strategy(name, options or {}, plugins=plugins)
    check_options(strategy)
    return strategy


def recorded_strategy(name: str, options: Mapping[str, JsonValue], *, plugins: PluginManager) -> Strategy:
    """As get_strategy, for options that PEFT took when the strategy was used."""
    if name.startswith("peft:"):
        from medgraft.strategies.peft_methods import peft_strategy

        strategy = peft_strategy(name)
    else:
        strategy = plugins.get("strategy", name)
        if not isinstance(strategy, Strategy):
            raise PluginError(f"Strategy {name!r} is a {type(strategy).__name__}, not a medgraft.plugin_api.Strategy.")
    return strategy.with_options(options)
