"""The published sizes, built without memory: anatomy, what strategies match, and what quantisation would hold."""

import pytest
import torch
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from medgraft.backbones.blip import BlipBackbone
from medgraft.backbones.blip2 import Blip2Backbone
from medgraft.backbones.blip_vqa import BlipVqaBackbone
from medgraft.backbones.instructblip import InstructBlipBackbone
from medgraft.backbones.published import published_config
from medgraft.backbones.vision_encoder_decoder import VisionEncoderDecoderBackbone
from medgraft.strategies import apply_strategy, check_quantized, get_strategy, quantization_config
from medgraft.types import lies_in

# parameters in millions, the Q-Former's layers with cross-attention, and linear layers of one layer of the language model
SIZES = {
    "Salesforce/blip-image-captioning-base": (BlipBackbone, 224.0),
    "Salesforce/blip-vqa-base": (BlipVqaBackbone, 361.2),
    "Salesforce/blip2-opt-2.7b": (Blip2Backbone, 3744.8),
    "Salesforce/blip2-flan-t5-xl": (Blip2Backbone, 3876.6),
    "Salesforce/instructblip-flan-t5-xl": (InstructBlipBackbone, 3957.2),
    "Salesforce/instructblip-vicuna-7b": (InstructBlipBackbone, 7913.2),
    "nlpconnect/vit-gpt2-image-captioning": (VisionEncoderDecoderBackbone, 239.2),
}
# LoRA on everything: vision 39 x 4, text layers x linear layers each, Q-Former 12 x (4 + 2) + 6 x 4 cross + projection;
# InstructBLIP's Q-Former has a second pair of feed-forward layers for the instruction
QFORMER, QFORMER_WITH_WORDS = 12 * 6 + 6 * 4 + 1, 12 * 8 + 6 * 4 + 1
MATCHED = {
    "Salesforce/blip-image-captioning-base": 12 * 4 + 12 * 10,
    "Salesforce/blip-vqa-base": 12 * 4 + 2 * 12 * 10,
    "Salesforce/blip2-opt-2.7b": 39 * 4 + 32 * 6 + QFORMER,
    "Salesforce/blip2-flan-t5-xl": 39 * 4 + 24 * (4 + 3) + 24 * (8 + 3) + QFORMER,
    "Salesforce/instructblip-flan-t5-xl": 39 * 4 + 24 * (4 + 3) + 24 * (8 + 3) + QFORMER_WITH_WORDS,
    "Salesforce/instructblip-vicuna-7b": 39 * 4 + 32 * 7 + QFORMER_WITH_WORDS,
    "nlpconnect/vit-gpt2-image-captioning": 12 * 6 + 12 * (2 + 3 + 2),
}
# what is held in 4 bits: without the Q-Former, the projection, the heads, and T5's wo
HELD = {
    "Salesforce/blip-image-captioning-base": 12 * 4 + 12 * 10,
    "Salesforce/blip-vqa-base": 12 * 4 + 2 * 12 * 10,
    "Salesforce/blip2-opt-2.7b": 39 * 4 + 32 * 6,
    "Salesforce/blip2-flan-t5-xl": 39 * 4 + 24 * (4 + 2) + 24 * (8 + 2),
    "Salesforce/instructblip-flan-t5-xl": 39 * 4 + 24 * (4 + 2) + 24 * (8 + 2),
    "Salesforce/instructblip-vicuna-7b": 39 * 4 + 32 * 7,
    "nlpconnect/vit-gpt2-image-captioning": 12 * 6 + 12 * (2 + 3 + 2),
}


@pytest.fixture(params=SIZES)
def published(request):
    kind, _ = SIZES[request.param]
    return request.param, kind, kind.meta_model(published_config(request.param))


def test_every_parameter_has_a_part_and_every_linear_layer_a_role(published):
    name, kind, skeleton = published
    assert sum(p.numel() for p in skeleton.parameters()) / 1e6 == pytest.approx(SIZES[name][1], abs=0.1)
    assert all(kind.anatomy.part_of(parameter) for parameter, _ in skeleton.named_parameters())
    linear = [module for module, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear)]
    lost = [module for module in linear if kind.anatomy.role_of(module) is None and not lies_in(module, kind.anatomy.never_run)]
    assert not lost


def test_lora_matches_what_the_architecture_has(published, plugins):
    name, kind, skeleton = published
    applied = apply_strategy(skeleton, kind.anatomy, get_strategy("lora", plugins=plugins))
    assert len(applied.matched_modules) == MATCHED[name]


@pytest.mark.parametrize("strategy", ["qlora", "lora-int8"])
def test_quantisation_holds_every_layer_that_it_should(published, strategy, plugins):
    name, kind, skeleton = published
    plan = get_strategy(strategy, plugins=plugins)
    config = quantization_config(plan, kind.anatomy, kind.never_quantized)
    assert isinstance(config, BitsAndBytesConfig)
    replace_with_bnb_linear(skeleton, config.llm_int8_skip_modules, config)
    held = [module for module, m in skeleton.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")]
    assert len(held) == HELD[name]
    if strategy == "qlora":  # 8-bit weights are told apart by what they hold, which skeletons do not
        check_quantized(skeleton, kind.anatomy, plan, kind.never_quantized)
