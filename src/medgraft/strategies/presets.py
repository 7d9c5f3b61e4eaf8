"""The strategies that come with medgraft."""

from __future__ import annotations

from medgraft.strategies.base import ADAPTER, FULL, PartPlan, Strategy

ZERO_SHOT = Strategy()
# Full fine-tuning, and the two variants that MedBLIP compares with it (arXiv 2505.14726, section 3).
TRAINED_FULL = Strategy(vision=FULL, bridge=FULL, text=FULL, learning_rate=3e-4)
ENCODER_FROZEN = Strategy(bridge=FULL, text=FULL, learning_rate=5e-4)
DECODER_FROZEN = Strategy(vision=FULL, bridge=FULL, learning_rate=5e-4)

# LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer of the towers; QLoRA is Dettmers et al. 2023, 2305.14314.
_LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
LORA = Strategy(vision=ADAPTER, bridge=ADAPTER, text=ADAPTER, options=dict(_LORA), learning_rate=2e-3)
LORA_DECODER = Strategy(text=ADAPTER, options=dict(_LORA), learning_rate=2e-3)
QLORA = LORA.model_copy(update={"quantization": "nf4"})
QLORA_DECODER = LORA_DECODER.model_copy(update={"quantization": "nf4"})
LORA_INT8 = LORA.model_copy(update={"quantization": "int8"})
DORA = LORA.model_copy(update={"options": {**_LORA, "use_dora": True}})  # Liu et al. 2024, arXiv 2402.09353
# rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) scales by alpha / sqrt(r), here to LoRA's scale at four times its rank.
RSLORA = LORA.model_copy(update={"options": {**_LORA, "r": 64, "lora_alpha": 16, "use_rslora": True}})
LORA_PLUS = LORA.model_copy(update={"loraplus_lr_ratio": 16.0, "learning_rate": 5e-4})  # Hayou et al. 2024, arXiv 2402.12354
PISSA = LORA.model_copy(update={"options": {**_LORA, "init_lora_weights": "pissa"}})  # Meng et al. 2024, arXiv 2404.02948
# VeRA (Kopiczko et al. 2023, arXiv 2310.11454) and OFT (Qiu et al. 2023, 2306.07280) with PEFT's defaults.
VERA = Strategy(vision=ADAPTER, bridge=ADAPTER, text=ADAPTER, method="VERA", learning_rate=3e-2)
OFT = Strategy(vision=ADAPTER, bridge=ADAPTER, text=ADAPTER, method="OFT", learning_rate=3e-3)
IA3 = Strategy(vision=ADAPTER, bridge=ADAPTER, text=ADAPTER, method="IA3", learning_rate=1e-2)  # Liu et al. 2022, 2205.05638

# BitFit trains only biases (Ben Zaken et al. 2021, arXiv 2106.10199), norm tuning only normalisation layers (2312.11420).
BITFIT = Strategy(**{p: PartPlan(mode="full", bias_only=True) for p in ("vision", "bridge", "text")}, learning_rate=5e-3)
NORM_TUNING = Strategy(**{p: PartPlan(mode="full", roles=("norm",)) for p in ("vision", "bridge", "text")}, learning_rate=5e-3)
