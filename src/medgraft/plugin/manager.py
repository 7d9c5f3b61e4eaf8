"""Finds plugins, records their failures and looks up names."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, Literal

import pluggy

from medgraft.errors import PluginError, UnknownNameError, suggestion
from medgraft.plugin import spec as hookspecs
from medgraft.plugin.types import BackboneSpec, DatasetSpec, MetricSpec, Spec, StrategySpec, what_failed

Kind = Literal["backbone", "strategy", "dataset", "metric"]
KINDS: Mapping[Kind, tuple[str, type[Spec]]] = {
    "backbone": ("medgraft_backbones", BackboneSpec),
    "strategy": ("medgraft_strategies", StrategySpec),
    "dataset": ("medgraft_datasets", DatasetSpec),
    "metric": ("medgraft_metrics", MetricSpec),
}
OWN = "medgraft"  # the distribution whose entry point provides the built-ins
ALL = "all"  # in MEDGRAFT_DISABLE_PLUGINS: every plugin but medgraft's own
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadFailure:
    """A plugin, or a part of one, that could not be used, and the reason."""

    plugin: str
    distribution: str
    message: str


@dataclass(frozen=True)
class PluginInfo:
    """A loaded plugin, the names that it provides and the folder or file of its code."""

    plugin: str
    distribution: str
    version: str
    location: str
    provides: Mapping[Kind, tuple[str, ...]]


@dataclass
class PluginManager:
    """All plugins of this interpreter: every entry point of the group `medgraft`, medgraft's own first.

    A plugin that fails goes to `failures` and does not affect others; with `strict` it raises PluginError instead. Before the
    first use of another distribution's plugin a line of the log says where its code comes from, unless it is in `named`.
    """

    disabled: frozenset[str] = frozenset()
    strict: bool = False
    failures: list[LoadFailure] = field(default_factory=list)
    named: set[str] = field(default_factory=lambda: {OWN})

    @classmethod
    def from_environment(cls) -> PluginManager:
        """All plugins, subject to MEDGRAFT_DISABLE_PLUGINS (comma-separated names, or `all`) and MEDGRAFT_STRICT_PLUGINS=1."""
        disabled = os.environ.get("MEDGRAFT_DISABLE_PLUGINS", "")
        return cls(
            disabled=frozenset(name.strip() for name in disabled.split(",") if name.strip()),
            strict=os.environ.get("MEDGRAFT_STRICT_PLUGINS") == "1",
        )

    def names(self, kind: Kind) -> tuple[str, ...]:
        """All names of a kind, sorted."""
        return tuple(sorted(self._specs[kind]))

    def specs(self, kind: Kind) -> tuple[tuple[Spec, str], ...]:
        """Every descriptor of a kind with the distribution that provides it, sorted by name."""
        return tuple((claims[0][0], self._loaded[claims[0][1]][1]) for _, claims in sorted(self._specs[kind].items()))

    def get(self, kind: Kind, name: str) -> Any:
        """The object called `name`; UnknownNameError with suggestions, PluginError if two plugins claim the name."""
        claims = self._specs[kind].get(name)
        if claims is None:
            raise UnknownNameError(self._unknown(kind, name))
        if len(claims) > 1:
            owners = " and ".join(sorted({self._loaded[plugin][1] for _, plugin in claims}))
            raise PluginError(f"{kind.capitalize()} {name!r} is provided by {owners}. Uninstall or disable one of them.")
        self._name(claims[0][1])
        return claims[0][0].resolve()

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin that loaded."""
        table = self._specs  # comes first, since collecting descriptors finds failures
        infos = []
        for plugin, (module, distribution, version) in self._loaded.items():
            provides = {
                kind: tuple(sorted(n for n, claims in table[kind].items() if plugin in (owner for _, owner in claims)))
                for kind in KINDS
            }
            infos.append(PluginInfo(plugin, distribution, version, _location(module), provides))
        return tuple(infos)

    def _name(self, plugin: str) -> None:
        """Say once where the code of a plugin comes from, before more of it runs."""
        module, distribution, version = self._loaded[plugin]
        if distribution not in self.named:
            self.named.add(distribution)
            _logger.info("plugin %s: %s %s in %s", plugin, distribution, version, _location(module))

    def _unknown(self, kind: Kind, name: str) -> str:
        known = self.names(kind)
        hint = self._family_hint(kind, name) or suggestion(name, self._local(kind))
        hint += f" Known: {', '.join(known)}." if kind == "metric" or not hint else ""
        failed = " ".join(f"Plugin {f.plugin} ({f.distribution}) failed to load: {f.message}" for f in self.failures)
        return f"Unknown {kind} {name!r}.{hint}{' ' + failed if failed else ''}"

    def _local(self, kind: Kind) -> list[str]:
        """The names that may be suggested: all but backbones that send images to a server."""
        return [spec.name for spec, _ in self.specs(kind) if not (isinstance(spec, BackboneSpec) and spec.remote)]

    def _family_hint(self, kind: Kind, name: str) -> str:
        """` Use x:SOURCE ...` for the name of a model family that a backbone takes, or the empty string."""
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        takes = [s for s, _ in self.specs(kind) if isinstance(s, BackboneSpec) and plain.startswith(s.families or ("\0",))]
        return f" Use {takes[0].name}:HUB_ID or {takes[0].name}:FOLDER, which takes {name} models." if takes else ""

    @cached_property
    def _loaded(self) -> dict[str, tuple[ModuleType, str, str]]:
        """Plugin name -> (module, distribution, version)."""
        loaded: dict[str, tuple[ModuleType, str, str]] = {}
        points = sorted(
            importlib.metadata.entry_points(group=hookspecs.GROUP), key=lambda point: (_owner(point) != OWN, point.name)
        )
        if not any(_owner(point) == OWN for point in points):
            raise PluginError(
                "medgraft's built-in names are not registered: its installed metadata is missing or older than its code. "
                "Install it again: pip install medgraft, or pip install -e . in its source folder."
            )
        for point in points:
            distribution = _owner(point)
            if point.name in self.disabled or distribution in self.disabled or (ALL in self.disabled and distribution != OWN):
                continue
            _logger.debug("importing plugin %s of %s: %s", point.name, distribution, point.value)
            try:
                module = point.load()
                if point.name in loaded:
                    raise PluginError(f"the name {point.name!r} is taken by {loaded[point.name][1]}")
            except (Exception, SystemExit) as error:
                self._fail(point.name, distribution, error)
                continue
            loaded[point.name] = (module, distribution, point.dist.version if point.dist else "?")
        return loaded

    @cached_property
    def _specs(self) -> dict[Kind, dict[str, list[tuple[Spec, str]]]]:
        """By kind and name, every descriptor and the plugin that provides it."""
        table: dict[Kind, dict[str, list[tuple[Spec, str]]]] = {kind: {} for kind in KINDS}
        for plugin, (module, distribution, _) in self._loaded.items():
            for kind, spec in self._collect(plugin, module, distribution):
                table[kind].setdefault(spec.name, []).append((spec, plugin))
        return table

    def _collect(self, plugin: str, module: ModuleType, distribution: str) -> Iterable[tuple[Kind, Spec]]:
        """All descriptors of one plugin. Each plugin has its own pluggy manager, since an exception aborts a shared call."""
        manager = pluggy.PluginManager(hookspecs.GROUP)
        manager.add_hookspecs(hookspecs)
        found: list[tuple[Kind, Spec]] = []
        try:
            manager.register(module, name=plugin)
            manager.check_pending()
        except Exception as error:  # one plugin's failure must not affect the others
            self._fail(plugin, distribution, error)
            return []
        for kind, (hook, expected) in KINDS.items():
            try:
                given = [descriptor for result in getattr(manager.hook, hook)() for descriptor in result]
                for descriptor in given:
                    if not isinstance(descriptor, expected):
                        raise PluginError(
                            f"{hook} must yield {expected.__name__}, not a {type(descriptor).__name__}: {descriptor!r}"
                        )
                    if not isinstance(descriptor.name, str) or not descriptor.name:
                        raise PluginError(f"{hook} yields a descriptor whose name is {descriptor.name!r}")
            except Exception as error:  # the same
                self._fail(plugin, distribution, error)
                continue
            found += [(kind, descriptor) for descriptor in given]
        return found

    def _fail(self, plugin: str, distribution: str, error: BaseException) -> None:
        failure = LoadFailure(plugin, distribution, what_failed(error))
        if self.strict:
            raise PluginError(f"Plugin {plugin} ({distribution}) failed to load: {failure.message}") from error
        self.failures.append(failure)
        if os.environ.get("MEDGRAFT_DEBUG"):
            print(f"medgraft: plugin {plugin}: {error!r}", file=sys.stderr)


def _location(module: ModuleType) -> str:
    path = getattr(module, "__file__", None) or "?"
    return path.removesuffix("/__init__.py").removesuffix("\\__init__.py")


def _owner(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "?"
