"""Every preset on every family of backbones: saved here, loaded in a new process and in plain PEFT, the logits are the same."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors.torch import save_file

from medgraft.adapter import in_place_digests, save_weights, write_package
from medgraft.errors import ConfigError, StrategyError
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import get_strategy
from medgraft.testing.samples import images
from medgraft.testing.strategy_checks import _manifest

PLUGINS = PluginManager()
_CHILD = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from safetensors.torch import load_file
sys.path.insert(0, sys.argv[2])
from test_matrix import PLUGINS, logits
from medgraft.adapter import load_adapter
from medgraft.backbones import get_backbone
from medgraft.strategies import changes_base

found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    loaded = load_adapter(folder, plugins=PLUGINS, backbone=sys.argv[3])
    expected = load_file(folder / "logits.safetensors")["logits"]
    strategy = loaded.manifest.strategy_settings
    ours, close = logits(loaded.backbone), changes_base(strategy)  # PiSSA's is saved as LoRA for the base as it was
    found[folder.name] = [torch.allclose(ours, expected, rtol=1e-4, atol=1e-4) if close else torch.equal(ours, expected), None]
    if strategy.uses_adapter and not loaded.manifest.training["in_place"] and strategy.quantization == "none":
        kind, source = get_backbone(loaded.base, plugins=PLUGINS)
        plain = kind.load(source)
        PeftModel.from_pretrained(plain.model, folder)
        found[folder.name][1] = torch.allclose(logits(plain), expected, rtol=1e-4, atol=1e-4)
print(json.dumps(found))
"""


@torch.no_grad()
def logits(backbone):
    backbone.model.eval()
    text = backbone.text_batch(["a nodule.", "no acute findings."], prompt="a picture", max_tokens=160)
    return backbone.decode(backbone.encode(backbone.pixel_values(images(2)), prompt="a picture"), text)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_preset_loads_in_a_new_process_with_the_same_logits(name, tiny_folder, tmp_path):
    kind, source = tiny_folder(name)
    saved = {}
    for preset in PLUGINS.names("strategy"):
        strategy = get_strategy(preset, plugins=PLUGINS)
        if not strategy.trains:
            continue
        try:
            backbone, applied, _ = prepare_model(f"{kind}:{source}", strategy, plugins=PLUGINS)
        except (StrategyError, ConfigError):  # a preset that this backbone does not support
            continue
        digests, folder = in_place_digests(applied), tmp_path / preset
        torch.manual_seed(1)
        for parameter in applied.model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.05 * torch.randn_like(parameter))
        manifest = _manifest(f"{kind}:{source}", backbone, applied)
        write_package(folder, manifest, functools.partial(save_weights, applied=applied, base=digests))
        save_file({"logits": logits(backbone).contiguous()}, folder / "logits.safetensors")
        saved[preset] = strategy.uses_adapter and strategy.quantization == "none"
    assert len(saved) >= 10
    command = [sys.executable, "-c", _CHILD, str(tmp_path), str(Path(__file__).parent), f"{kind}:{source}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {preset: [True, True if in_peft else None] for preset, in_peft in saved.items()}
