"""medgraft's own plugin: it uses the same hooks as any other; targets are strings, so nothing is imported."""

from __future__ import annotations

from collections.abc import Iterator

from medgraft.plugin import BackboneSpec, DatasetSpec, MetricSpec, StrategySpec, hookimpl

_PRESETS = "medgraft.strategies.presets"


@hookimpl
def medgraft_backbones() -> Iterator[BackboneSpec]:
    """The models of the paper; weights come from a hub id or folder, as in `blip:Salesforce/blip-image-captioning-base`."""
    for name, summary, target, tiny in (
        ("blip", "BLIP captioning checkpoints", "blip:BlipBackbone", ("blip",)),
        ("blip2", "BLIP-2 with OPT or Flan-T5", "blip2:Blip2Backbone", ("blip2-opt", "blip2-t5")),
        (
            "instructblip", "InstructBLIP with Flan-T5 or Vicuna", "instructblip:InstructBlipBackbone",
            ("instructblip-t5", "instructblip-vicuna"),
        ),
        (
            "vit-gpt2", "ViT-GPT2 and other vision encoder-decoders", "vision_encoder_decoder:VisionEncoderDecoderBackbone",
            ("vit-gpt2", "deit-bert", "dinov2-trocr", "clip-bart", "swin-roberta", "beit-electra"),
        ),
    ):  # fmt: skip
        makers = {model: f"medgraft.testing.tiny:{model.replace('-', '_')}" for model in tiny}
        yield BackboneSpec(name, summary, f"medgraft.backbones.{target}", makers)


@hookimpl
def medgraft_strategies() -> Iterator[StrategySpec]:
    """The presets; `peft:<METHOD>` gives any other PEFT method."""
    for name, summary, target in (
        ("zero-shot", "nothing is trained", "ZERO_SHOT"),
        ("full", "every parameter is trained", "TRAINED_FULL"),
        ("encoder-frozen", "the decoder (and bridge) is trained, the vision tower frozen", "ENCODER_FROZEN"),
        ("decoder-frozen", "the vision tower (and bridge) is trained, the decoder frozen", "DECODER_FROZEN"),
        ("lora", "LoRA on the linear layers of every part", "LORA"),
        ("lora-decoder", "LoRA on the linear layers of the decoder", "LORA_DECODER"),
        ("qlora", "LoRA on every part, base held in 4-bit NF4", "QLORA"),
        ("qlora-decoder", "LoRA on the decoder, base held in 4-bit NF4", "QLORA_DECODER"),
        ("lora-int8", "LoRA on every part, base held in 8-bit integers", "LORA_INT8"),
        ("dora", "weight-decomposed LoRA on every part", "DORA"),
        ("rslora", "LoRA of rank 64 on every part, with the scale of rank-stabilised LoRA", "RSLORA"),
        ("lora-plus", "LoRA on every part, its B at 16 times the learning rate of A", "LORA_PLUS"),
        ("pissa", "LoRA on every part, starting from the base's largest singular values", "PISSA"),
        ("vera", "two trained vectors a layer on every part, between random matrices that all share", "VERA"),
        ("oft", "orthogonal rotations of each layer's input on every part", "OFT"),
        ("ia3", "learned scales on attention and MLP activations", "IA3"),
        ("bitfit", "biases only", "BITFIT"),
        ("norm-tuning", "normalisation layers only", "NORM_TUNING"),
    ):
        yield StrategySpec(name, summary, f"{_PRESETS}:{target}")


@hookimpl
def medgraft_datasets() -> Iterator[DatasetSpec]:
    """Readers for common layouts of captioned medical images, and the embedded phantoms."""
    for name, summary, target in (
        ("phantoms", "synthetic radiology images, generated on first use", "medgraft.data.phantoms:Phantoms"),
        ("roco", "ROCO v1 folder (train|validation|test/radiology/captions.txt)", "medgraft.data.roco:Roco"),
        ("roco-kaggle", "ROCO as on Kaggle (all_data/)", "medgraft.data.roco:KaggleRoco"),
        ("rocov2", "ROCOv2 folder (train_captions.csv, train_images/)", "medgraft.data.roco:Rocov2"),
        ("imageclef", "ImageCLEFmedical caption files of 2022 to 2024", "medgraft.data.roco:ImageClef"),
        ("csv", "table with named columns, separated by commas or semicolons", "medgraft.data.tables:CsvTable"),
        ("tsv", "tab-separated table with named columns", "medgraft.data.tables:TsvTable"),
        ("json", "JSON array, lists by split, or conversations", "medgraft.data.json_lists:JsonTable"),
        ("jsonl", "one JSON object a line", "medgraft.data.json_lists:JsonlTable"),
        ("coco", "COCO captions JSON", "medgraft.data.coco:CocoCaptions"),
        ("imagefolder", "Hugging Face imagefolder (metadata.csv, .jsonl, .parquet)", "medgraft.data.imagefolder:ImageFolder"),
        ("hf", "Hugging Face data set: hub id, save_to_disk folder, parquet, arrow", "medgraft.data.hub:HubDataset"),
        ("vqa", "table of image, question and answer: CSV, JSON, JSON lines", "medgraft.data.questions:QuestionTable"),
        ("vqa-rad", "VQA-RAD as published", "medgraft.data.vqa:VqaRad"),
        ("slake", "SLAKE, English or Chinese questions", "medgraft.data.vqa:Slake"),
        ("pathvqa", "PathVQA as published (qas/, images/)", "medgraft.data.vqa:PathVqa"),
        ("webdataset", "tar archives of images with captions", "medgraft.data.webdataset:WebDataset"),
    ):
        yield DatasetSpec(name, summary, target)


@hookimpl
def medgraft_metrics() -> Iterator[MetricSpec]:
    """The COCO caption scores, further text scores, facts, concepts and saliency."""
    yield MetricSpec("bleu", "BLEU-1..4 by COCO's rules", "medgraft.metrics.bleu:Bleu")
    yield MetricSpec("rouge_l", "ROUGE-L by COCO's rules", "medgraft.metrics.rouge_l:RougeL")
    yield MetricSpec("cider", "CIDEr-D by COCO's rules", "medgraft.metrics.cider:Cider")
    yield MetricSpec("rouge_1", "ROUGE-1 by ImageCLEFmedical's rules", "medgraft.metrics.imageclef:Rouge1")
    yield MetricSpec("bertscore", "BERTScore as bertscore:HUB_ID_OR_FOLDER", "medgraft.metrics.bertscore:BertScore")
    yield MetricSpec("clinical", "modality, side, findings, measurements, by their words", "medgraft.metrics.clinical:Clinical")
    yield MetricSpec("facts", "facts of phantoms: study, view, finding, side, site", "medgraft.metrics.facts:PhantomFacts")
    yield MetricSpec("vqa", "answers: exact match by VQA v2's rules, F1, BLEU-1, yes or no", "medgraft.metrics.vqa:Vqa")
    yield MetricSpec("meteor", "METEOR by nltk", "medgraft.metrics.meteor:Meteor")
    yield MetricSpec("spice", "SPICE; needs java and CoreNLP models", "medgraft.metrics.spice:Spice")
    yield MetricSpec("concepts", "UMLS concept F1 as concepts:TERMS.csv", "medgraft.metrics.concepts:Concepts")
    yield MetricSpec("localization", "whether attention points at the finding", "medgraft.metrics.localization:Localization")
    yield MetricSpec("faithfulness", "deletion and insertion curves of maps", "medgraft.metrics.faithfulness:Faithfulness")
